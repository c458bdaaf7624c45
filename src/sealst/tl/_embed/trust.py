"""What is known of how far predictions of a model can be believed, as results carry it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sealst._core.scores.reliability import BETTER
from sealst._errors import DataError
from sealst._logging import logger, warn
from sealst._validate import listed
from sealst.models import SealModel

#: what results say of a model that knows nothing of it
UNKNOWN = "unknown"


def believed(model: SealModel, genes: Sequence[str], least: float | None) -> list[str]:
    """Genes whose held-out Pearson is `least` or more, where that is asked for; the others are named.

    Raises
    ------
    DataError
        When nothing is known of the model, or no gene is left.
    """
    if least is None:
        return list(genes)
    if isinstance(least, bool) or not isinstance(least, int | float | np.number) or not -1 <= least <= 1:
        raise DataError(f"`min_reliability` must be a correlation from -1 to 1, found {least!r}.")
    if model.reliability is None:
        raise DataError(
            "`min_reliability` asks for what held-out patients showed, but the reliability of this model is unknown. "
            "Train with `sl.tl.finetune(..., crossfit='patient')`, or hand it an evaluation: "
            "`model.rely_on(evaluation)`."
        )
    r = model.reliability.of(genes)["pearson"].to_numpy()
    kept = [gene for gene, value in zip(genes, r, strict=True) if value >= least]
    if not kept:
        best = f"the best has {np.nanmax(r):.2f}" if np.isfinite(r).any() else "nothing is known of them"
        raise DataError(f"None of the {len(genes)} genes reaches `min_reliability={least:g}`; {best}.")
    if len(kept) < len(genes):
        left = [gene for gene, value in zip(genes, r, strict=True) if not value >= least]
        logger.info("%d of %d genes are below min_reliability=%g: %s", len(left), len(genes), least, listed(left))
    return kept


def better_genes(model: SealModel) -> list[str] | None:
    """Genes that are predicted better than chance; None where that is unknown."""
    if model.reliability is None:
        return None
    found = model.reliability.genes
    return list(found.index[found[BETTER]])


def reliability_entry(model: SealModel, genes: Sequence[str]) -> dict[str, Any] | str:
    """What provenance says of predicted genes, in their order."""
    if model.reliability is None:
        return UNKNOWN
    found = model.reliability.of(genes)
    return {
        "held_out": model.reliability.held_out,
        "n_patients": len(model.reliability.patients),
        "readout": model.readouts[0],
        "pearson": found["pearson"].to_numpy(dtype=np.float64),
        BETTER: found[BETTER].to_numpy(dtype=bool),
    }


def tell(model: SealModel, genes: Sequence[str], readout: str) -> None:
    """Log how far predicted genes can be believed."""
    if model.reliability is None:
        logger.info("reliability unknown: the model was not cross-fitted (`crossfit=` of `sl.tl.finetune`)")
        return
    other = readout != model.readouts[0]
    logger.info("%s%s", model.reliability.summary(genes), f" (by the readout {model.readouts[0]!r})" if other else "")


def warn_of_genes(model: SealModel, genes: Sequence[str]) -> None:
    """Name genes of a question that are not predicted better than chance, where that is known."""
    if model.reliability is None:
        return
    found = model.reliability.of(genes)[BETTER].to_numpy()
    if wrong := [gene for gene, fine in zip(genes, found, strict=True) if not fine]:
        warn(
            f"{len(wrong)} of the {len(genes)} gene(s) asked for are not predicted better than chance on held-out "
            f"{model.reliability.held_out}: {listed(wrong)}. What is found by them may be anything; see "
            "`model.reliability`."
        )
