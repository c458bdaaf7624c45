"""What the methods of an evaluation are, and the colour each has in every figure."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from sealst._errors import DataError, MissingKeyError
from sealst._evaluation import Evaluation
from sealst._validate import listed
from sealst.pl._base import BLUE, FREE, GREEN, GREY, ORANGE, PINK, RED, SKY

FROZEN, ADAPTED, MEAN = "frozen + ridge", "adapted + ridge", "mean"
#: name of the test sections of a fold scored together
POOLED = "all"
#: no method of expression shares a colour with another, nor one of retrieval
_FIXED = {
    FROZEN: BLUE,
    ADAPTED: RED,
    "seal prediction": "#222222",
    "seal head": GREEN,
    "seal retrieval": PINK,
    "st-net": ORANGE,
    "bleep": SKY,
    "colour + ridge": "#6F5B3E",
    MEAN: GREY,
    "permuted + ridge": "#BBBBBB",
    "adapted": "#882255",
    "frozen": "#332288",
    "seal query": "#AA4499",
    "bleep query": "#117733",
}

MEANINGS = {
    FROZEN: "the encoder as published, and a ridge regression from its features to expression",
    ADAPTED: "the encoder after training with expression, and the same ridge regression",
    "seal prediction": "what `sealst.tl.predict` writes: the readout that held-out training sections chose",
    "seal head": "the expression head that was trained together with the adapted encoder",
    "seal retrieval": "the mean expression of the training spots that lie closest to the crop in the shared embedding",
    "seal query": "pathways only: the similarity of the crop to the genes of the pathway, as retrieval asks for it",
    "bleep query": "the same with the model of contrastive learning alone",
    "st-net": "regression of expression by finetuning the same encoder alike, after ST-Net (He et al. 2020)",
    "bleep": "contrastive learning alone, and the mean of the nearest spots, after BLEEP (Xie et al. 2023)",
    "colour + ridge": "a ridge regression from mean and deviation of the crop's colour: a floor",
    "permuted + ridge": "the same regression after training spots interchanged their expression: a control",
    MEAN: "each gene's mean over the training spots, the same for every spot: a floor",
    "adapted": "retrieval only: cosine of crop and expression in the shared embedding after training",
    "frozen": "retrieval only: the same with the encoder as published",
}


def colours_of(methods: Iterable[str]) -> dict[str, str]:
    """Colour by method, the same in every figure, whichever methods it shows and in whatever order.

    Those without a colour of their own have one that follows from their name; two of one figure never share it as long
    as there are colours.
    """
    methods = list(dict.fromkeys(str(m) for m in methods))
    found = {m: _FIXED[m] for m in methods if m in _FIXED}
    for method in sorted(set(methods) - set(found)):
        first = zlib.crc32(method.encode()) % len(FREE)
        turned = (*FREE[first:], *FREE[:first])
        found[method] = next((colour for colour in turned if colour not in found.values()), turned[0])
    return {m: found[m] for m in methods}


def frame_of(result: object, name: str) -> pd.DataFrame:
    """A table of an Evaluation by the name of its attribute, or a table given as such."""
    if isinstance(result, Evaluation):
        return getattr(result, name)
    if isinstance(result, pd.DataFrame):
        return result
    raise TypeError(
        f"Expected an Evaluation, as `sl.tl.evaluate(...)` returns it, or its `.{name}`; found {type(result).__name__}."
    )


def check_columns(frame: pd.DataFrame, needed: Sequence[str], *, what: str) -> None:
    """Raise unless a table has columns and rows."""
    if missing := [column for column in needed if column not in frame]:
        raise MissingKeyError(
            f"Column(s) {listed(missing)} not found in {what}; found: {listed(frame.columns, 20)}. "
            "Pass what `sl.tl.evaluate(...)` returns."
        )
    if frame.empty:
        raise DataError(f"{what[:1].upper()}{what[1:]} has no rows.")


def require_spots(result: object) -> Evaluation:
    """Return an Evaluation that holds held-out spots."""
    if not isinstance(result, Evaluation):
        raise TypeError(f"Expected an Evaluation, as `sl.tl.evaluate(...)` returns it, found {type(result).__name__}.")
    if not result.spots:
        raise DataError(
            "The Evaluation holds no spots (`.spots` is empty): there were too many to keep. Evaluate fewer sections "
            "to draw them."
        )
    return result


def pick(name: str, wanted: str | Iterable[str] | None, known: Sequence[str]) -> list[str]:
    """Names asked for, in that order, or all that are known."""
    if wanted is None:
        return list(known)
    chosen = [wanted] if isinstance(wanted, str) else list(wanted)
    if not chosen:
        raise DataError(f"`{name}` names nothing to show.")
    if unknown := [one for one in chosen if one not in known]:
        raise MissingKeyError(f"`{name}`: {listed(unknown)} not found; found: {listed(known, 20)}.")
    return chosen


def dense(matrix: object) -> np.ndarray:
    """Return a float array, whatever the matrix was."""
    return np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix, dtype=float)
