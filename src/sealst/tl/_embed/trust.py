"""What is known of how far predictions of a model can be believed, as results carry it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from sealst import _section
from sealst._core.scores.reliability import BETTER
from sealst._errors import DataError
from sealst._keys import Keys
from sealst._logging import logger, warn
from sealst._validate import listed, shown
from sealst.models import Reliability, SealModel
from sealst.models._intervals import Intervals

#: what results say of a model that knows nothing of it
UNKNOWN = "unknown"
#: what predicts single patches and cells, where results name a readout
LOCAL = "local"


class _Unknown(NamedTuple):
    """What is said where a reliability is unknown."""

    whose: str
    why: str
    mend: str


_OF_MODEL = _Unknown(
    "this model",
    "the model was not cross-fitted (`crossfit=` of `sl.tl.finetune`)",
    "Train with `sl.tl.finetune(..., crossfit='patient')`, or hand it an evaluation: `model.rely_on(evaluation)`.",
)
_OF_LOCAL = _Unknown(
    "`model.local`",
    "no patient was held out from the local head (`held_out=` of `sl.tl.fit_local`)",
    "Hand sections of patients that the model has not seen to `sl.tl.fit_local(..., held_out=...)`.",
)


def known_of(model: SealModel, readout: str | None = None) -> Reliability | None:
    """What held-out patients showed of what predicts: readouts of spots and the local head are two things."""
    if readout == LOCAL:
        return None if model.local is None else model.local.reliability
    return model.reliability


def believed(model: SealModel, genes: Sequence[str], least: float | None, *, readout: str | None = None) -> list[str]:
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
    known = known_of(model, readout)
    if known is None:
        said = _OF_LOCAL if readout == LOCAL else _OF_MODEL
        raise DataError(
            f"`min_reliability` asks for what held-out patients showed, but the reliability of {said.whose} is "
            f"unknown. {said.mend}"
        )
    r = known.of(genes)["pearson"].to_numpy()
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


def reliability_entry(model: SealModel, genes: Sequence[str], *, readout: str | None = None) -> dict[str, Any] | str:
    """What provenance says of predicted genes, in their order."""
    known = known_of(model, readout)
    if known is None:
        return UNKNOWN
    found = known.of(genes)
    return {
        "held_out": known.held_out,
        "n_patients": len(known.patients),
        "readout": LOCAL if readout == LOCAL else model.readouts[0],
        "pearson": found["pearson"].to_numpy(dtype=np.float64),
        BETTER: found[BETTER].to_numpy(dtype=bool),
    }


def tell(model: SealModel, genes: Sequence[str], readout: str) -> None:
    """Log how far predicted genes can be believed."""
    known = known_of(model, readout)
    if known is None:
        logger.info("reliability unknown: %s", (_OF_LOCAL if readout == LOCAL else _OF_MODEL).why)
        return
    other = readout not in (LOCAL, model.readouts[0])
    logger.info("%s%s", known.summary(genes), f" (by the readout {model.readouts[0]!r})" if other else "")


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


def intervals_for(model: SealModel, table: AnnData, readout: str, coverage: float | None) -> Intervals | None:
    """What a model knows of how far spots lie from its predictions, where that is asked for.

    Raises
    ------
    DataError
        When nothing is known of the model, or what is known is of other predictions than those asked for.
    """
    if coverage is None:
        return None
    known = model.intervals
    if known is None:
        raise DataError(
            "`intervals` asks for what held-out patients showed, but this model has none. Train on three patients or "
            "more with `sl.tl.finetune(..., crossfit='patient')`."
        )
    if isinstance(coverage, bool | str) or coverage not in known.levels:
        levels = ", ".join(f"{level:g}" for level in known.levels)
        raise DataError(f"`intervals` is a share of spots, one of {levels}; found {shown(coverage)}.")
    if not table.n_vars:
        raise DataError(
            "Intervals hold for the measured expression of single spots, and tiles of a slide are none: they have "
            "another size and distance. Leave out `intervals`."
        )
    if readout != known.readout:
        raise DataError(
            f"Intervals were measured for the readout {known.readout!r}, not for {readout!r}. Leave out `readout`, or "
            "`intervals`."
        )
    return known


def check_views(known: Intervals | None, views: int) -> None:
    """Raise where embeddings are means over another number of views than intervals were measured with."""
    if known is not None and views != known.views:
        raise DataError(
            f"Intervals were measured for means over {known.views} views of each crop, and these are over {views}. Say "
            f"`views={known.views}`, or leave out `intervals`."
        )


def write_limits(table: AnnData, key: str, limits: Sequence[pd.DataFrame] | None, facts: dict[str, Any]) -> None:
    """Write limits beside the slot of predictions; without any, remove those of the predictions before."""
    slots, before = Keys.limits(key), _section.recorded(table, "predict")
    if limits is None:
        if stale := [slot for slot in slots if slot in before]:
            for slot in stale:
                table.obsm.pop(slot, None)
            _section.record(table, "predict", {k: v for k, v in before.items() if k not in stale})
        return
    for slot, frame in zip(slots, limits, strict=True):
        table.obsm[slot] = frame
        _section.record_slot(table, "predict", slot, {k: v for k, v in facts.items() if k != "reliability"})
    known = facts["intervals"]
    logger.info(
        "Wrote .obsm[%r] and [%r]: between them %.0f%% of single spots of further %s are expected, by %d held out in "
        "turn", *slots, 100 * known["coverage"], known["held_out"], known["n_held_out"],
    )  # fmt: skip
