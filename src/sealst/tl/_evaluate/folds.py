"""Folds of an evaluation: which spots are learned from, which are held out, and that neither side knows the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain

import numpy as np
from spatialdata import SpatialData

from sealst import _section
from sealst._errors import DataError, LeakError
from sealst._section import Data, Part, parts_of
from sealst._validate import listed
from sealst.io import Collection
from sealst.models import SealModel
from sealst.pp import Split, check_split, split

#: early stopping holds out about one in so many training spots
_STOPPING_FOLDS = 5


def given_fold(train: Sequence[SpatialData], test: Sequence[SpatialData], table_key: str) -> list[Split]:
    """One fold from sections to learn from and sections that are held out."""
    sides = [{p.section: p.obs_names for p in parts_of(side, table_key)} for side in (train, test)]
    if both := sorted(set(sides[0]) & set(sides[1])):
        raise DataError(f"Section(s) {listed(both)} stand on both sides; leave them out of one.")
    return [Split(sides[0], sides[1], "test")]


def made_folds(
    sections: Sequence[SpatialData], folds: str | Sequence[Split], *, allow_shared_patients: bool, table_key: str
) -> list[Split]:
    """Folds by name (see `sealst.pp.split`), or as given after a check for leaks."""
    if isinstance(folds, str):
        return split(sections, by=folds, allow_shared_patients=allow_shared_patients, table_key=table_key)
    parts = {part.section: part for part in parts_of(sections, table_key)}
    if len({fold.name for fold in folds}) < len(folds):
        raise DataError(f"Folds need names of their own, found {listed(fold.name for fold in folds)}.")
    for fold in folds:
        if unknown := sorted({*fold.train, *fold.test} - set(parts)):
            raise DataError(f"Fold {fold.name!r} names section(s) {listed(unknown)}; found: {listed(parts)}.")
        for name, spots in (*fold.train.items(), *fold.test.items()):
            if lost := sorted(set(spots) - set(parts[name].obs_names)):
                raise DataError(f"Fold {fold.name!r} names spots that section {name!r} lacks: {listed(lost, 3)}.")
        if not allow_shared_patients:
            sides = (side_tables(list(parts.values()), side) for side in (fold.train, fold.test))
            check_split(*sides, table_key=table_key)
    if not folds:
        raise DataError("`folds` is empty; pass a name such as 'patient', or what `sl.pp.split` returns.")
    return list(folds)


def stopping_split(sections: Sequence[SpatialData], fold: str, table_key: str) -> Split:
    """Training sections of a fold divided once more: to learn from, and (its test side) to stop by.

    Patients stay together; where one patient is left to train on, sections do.
    """
    parts = parts_of(sections, table_key)
    patients = _patients(parts)
    if len(parts) < 2:
        raise DataError(
            f"`params.patience` stops by sections that the fold does not train on, but fold {fold!r} has one training "
            f"section only ({listed(p.section for p in parts)}). Add sections, or say with `params.epochs` how long to "
            "train and leave `patience` out."
        )
    by, n_groups = ("patient", len(patients)) if len(patients) > 1 else ("section", len(parts))
    found = split(
        sections, by=by, n_folds=min(_STOPPING_FOLDS, n_groups), allow_shared_patients=by == "section",
        table_key=table_key,
    )  # fmt: skip
    wanted = sum(len(part.obs_names) for part in parts) / _STOPPING_FOLDS
    # Of few patients one may have most of the spots; those are to be learned from.
    return min(found, key=lambda one: abs(sum(map(len, one.test.values())) - wanted))


#: what else to do where a model is tested
_TEST_OTHERWISE = (
    "Test on other patients, let every fold train its own model (pass the arguments of `sl.tl.finetune` instead of a "
    "model), or pass `allow_shared_patients=True` for an in-sample check."
)


def check_unseen(model: SealModel, tested: Iterable[Part], *, hint: str = _TEST_OTHERWISE) -> None:
    """Refuse sections of patients that the model was trained on, warm-up and early stopping included."""
    roles = ("patients", "warmup_patients", "stopping_patients")
    seen = set(chain.from_iterable(model.provenance.get(role, []) for role in roles))
    if shared := sorted(_patients(tested) & seen):
        raise LeakError(f"The model was trained on patient(s) {listed(shared)}, who are in the test sections. {hint}")


def check_held_out(fold: Split, models: Mapping[str, SealModel]) -> None:
    """Refuse models of a fold that, by their own record, learned from its test sections or stopped by them."""
    for name, model in models.items():
        seen = set(model.provenance["sections"]) | set(model.provenance["validation"])
        if leaked := sorted(seen & set(fold.test)):
            raise LeakError(
                f"Fold {fold.name!r}: {name!r} was trained or stopped on test section(s) {listed(leaked)}, so its "
                "scores there mean nothing. Please report this with the call that led to it."
            )


def check_warmup(parts: Sequence[Part], folds: Sequence[Split], patients: AbstractSet[str] | None) -> None:
    """Refuse folds that test on patients whose expression every fold's training warms up on."""
    if patients is None:
        raise LeakError(
            "Tables of `warmup` name no patients (`.obs['patient']`), so nothing tells whether they are of test "
            "patients. Add the column, or pass `allow_shared_patients=True` if you know that they are not."
        )
    for fold in folds:
        if shared := sorted(_patients(p for p in parts if p.section in fold.test) & patients):
            raise LeakError(
                f"Fold {fold.name!r} tests on patient(s) {listed(shared)}, whose expression is in `warmup`. Leave them "
                "out of it, or pass `allow_shared_patients=True` for an in-sample check."
            )


def _patients(parts: Iterable[Part]) -> set[str]:
    return set(chain.from_iterable(_section.patients_of(p.table, p.rows) for p in parts))


def picked(
    sections: Sequence[SpatialData], chosen: Sequence[int], *, instead: Mapping[int, SpatialData] | None = None
) -> Sequence[SpatialData]:
    """Some of the sections, or what stands `instead` of one; of a collection the others stay unopened."""
    instead = instead or {}
    if isinstance(sections, Collection):
        names = sections.names
        return sections.subset([names[i] for i in chosen]).replaced({names[i]: one for i, one in instead.items()})
    return [instead[i] if i in instead else sections[i] for i in chosen]


def check_units(parts: Sequence[Part], folds: Sequence[Split]) -> None:
    """Refuse sections whose expression was scaled to different totals: one cannot be predicted from the other."""
    used = {name for fold in folds for side in (fold.train, fold.test) for name in side}
    # A section without expression is refused by name where its expression is needed.
    totals = {part.section: part.target_sum for part in parts if part.section in used and part.target_sum is not None}
    if len(set(totals.values())) > 1:
        cases = ", ".join(f"{name!r}: {total:g}" for name, total in list(totals.items())[:8])
        raise DataError(
            f"The sections were normalised with different `target_sum` ({cases}). Run `sl.pp.normalize` alike on all."
        )


def side_tables(parts: Sequence[Part], spots: dict[str, np.ndarray]) -> list[Data]:
    """Tables of one side of a fold, with its spots alone: what may be known when genes are chosen."""
    out: list[Data] = []
    for part in parts:
        if part.section in spots:
            table = part.table[part.rows]
            out.append(table[np.isin(table.obs_names, spots[part.section])])
    return out
