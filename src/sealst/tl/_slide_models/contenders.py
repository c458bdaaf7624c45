"""Embeddings that a slide model is fitted on side by side, of the same slides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sealst._data.bags.bags import Bags
from sealst._errors import DataError, LeakError
from sealst._keys import Keys
from sealst._validate import check_key, listed
from sealst.tl._slide_models.rows import FLOOR


def contenders_of(bags: Bags, compare: Sequence[str] | Mapping[str, Bags] | str | None) -> dict[str, Bags]:
    """Bags by the name of their embedding, the one to keep first.

    Parameters
    ----------
    bags
        Slides with the embedding to keep.
    compare
        Further embeddings: names of the bags' own, or other bags of the same slides by name; None is the frozen
        encoder's where the bags have it.
    """
    found = {bags.key: bags}
    if compare is None:
        compare = [Keys.FROZEN] if Keys.FROZEN in bags.keys and bags.key != Keys.FROZEN else []
    if isinstance(compare, str):
        compare = [compare]
    named: dict[str, Any] = dict(compare) if isinstance(compare, Mapping) else dict.fromkeys(compare)
    for name, other in named.items():
        if name in (*found, FLOOR) or " - " in str(name):
            raise DataError(f"`compare` names {name!r}, which stands for something else; give it another name.")
        if other is None:
            check_key(bags.keys, name, where="the bags' embeddings", hint="Or pass `compare={'name': bags}`.")
            found[name] = bags.with_key(name)
        elif isinstance(other, Bags):
            found[name] = _same_slides(bags, other, name)
        else:
            raise TypeError(f"`compare[{name!r}]` must be Bags, found {type(other).__name__}.")
    return found


def _same_slides(bags: Bags, other: Bags, name: str) -> Bags:
    if lost := [slide for slide in bags.obs.index if slide not in other.obs.index]:
        raise DataError(f"`compare[{name!r}]` lacks slide(s) {listed(lost)}; take the slides that both have.")
    found = other.take(other.obs.index.get_indexer(bags.obs.index))
    # Patients and labels are those of the bags that are fitted, however the others state them.
    return replace(found, obs=bags.obs)


def test_contenders(bags: Bags, test: Bags, contenders: Mapping[str, Bags]) -> dict[str, Bags]:
    """The same embeddings of the slides that are kept out, after a check for leaks."""
    if not isinstance(test, Bags):
        raise TypeError(f"`test` must be Bags (`sl.io.read_bags`), found {type(test).__name__}.")
    if both := sorted(set(bags.obs.index) & set(test.obs.index)):
        raise LeakError(f"Slide(s) {listed(both)} are in `bags` and in `test`.")
    patients = (set(b.obs[Keys.PATIENT].dropna()) for b in (bags, test))
    if both := sorted(set.intersection(*patients)):
        raise LeakError(f"Patient(s) {listed(both)} have slides in `bags` and in `test`; a patient is on one side.")
    found = {}
    for name, other in contenders.items():
        if other.facts is not bags.facts:
            raise DataError(
                f"`compare[{name!r}]` is given as bags of its own, which say nothing about the slides of `test`. "
                "Leave `test` out, or read both embeddings into one `Bags` and name them."
            )
        check_key(test.keys, other.key, where="the embeddings of `test`", hint="Embed those slides with it too.")
        found[name] = test.with_key(other.key)
        check_same_embedding(embedding_of(other), found[name])
    return found


def embedding_of(bags: Bags) -> str | None:
    """Fingerprint or name of the model behind the bags' embedding; None where it is not known."""
    name = dict(bags.facts.get("models", {})).get(bags.key)
    return None if name is None else str(name)


def check_same_embedding(expected: str | None, bags: Bags) -> None:
    """Raise when embeddings were made by another model than expected; where either is unknown nothing is said."""
    found = embedding_of(bags)
    if expected is not None and found is not None and expected != found:
        raise DataError(
            f"Embeddings {bags.key!r} were made by model {found!r}, but the slide model was fitted on those of "
            f"{expected!r}. Embed the slides with that model, or fit again."
        )
