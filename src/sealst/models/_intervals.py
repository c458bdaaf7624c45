"""How far single spots of new patients may lie from a model's predictions: kept with it, gene by gene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from sealst._core.scores.intervals import LEVELS, MOST, Residuals, Spread, fit_intervals
from sealst._core.scores.reliability import HELD_OUT, PATIENTS, SECTIONS
from sealst._errors import CheckpointError
from sealst._given.schema import Count, Name, Stored, one_of
from sealst._html import text_as_html
from sealst.models._stored_table import OfModel, place_of, read_table, table_text

INTERVALS_FILE = "intervals.tsv"
#: a column for each of the levels
_REACH = [f"reach_{100 * level:g}" for level in LEVELS]
_COLUMNS = ("name", "constant", "slope", *_REACH)

_Finite = Annotated[float, Field(ge=0, le=MOST)]


class _Facts(OfModel):
    """What the lines above the table say."""

    held_out: Annotated[str, one_of(PATIENTS, SECTIONS)]
    n_held_out: Count
    readout: Name
    views: Count


class _Row(Stored):
    """A row of the table; what is not known is None."""

    name: Name
    constant: _Finite | None
    slope: _Finite | None
    reach_50: _Finite | None
    reach_80: _Finite | None
    reach_90: _Finite | None
    reach_95: _Finite | None


@dataclass(frozen=True, eq=False, repr=False)
class Intervals:
    """How far measured expression lies from a model's predictions on patients that it has not seen, kept with it.

    Made by `sealst.tl.finetune` with ``crossfit=``.

    Attributes
    ----------
    spread
        Deviation at every prediction, and how many of them intervals reach to either side, by gene.
    genes
        Names of the genes.
    model
        Fingerprint of the model.
    held_out, n_held_out
        What was held out (``"patients"``, or ``"sections"`` of patients that were seen), and how many of them.
    readout, views
        What predicted, from the mean over how many views of each crop.
    """

    spread: Spread
    genes: tuple[str, ...]
    model: str
    held_out: str
    n_held_out: int
    readout: str
    views: int

    @property
    def levels(self) -> tuple[float, ...]:
        """Shares of spots that intervals are known for."""
        return LEVELS

    @property
    def known(self) -> np.ndarray:
        """Bool (genes,): of which genes they are known."""
        return np.isfinite(self.spread.reach[0])

    def limits(
        self, predicted: np.ndarray, coverage: float, *, genes: Sequence[str] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper limits, float32, of log1p-CP10k of single spots.

        Parameters
        ----------
        predicted
            log1p-CP10k (n, genes), as `SealModel.predict_expression` returns it.
        coverage
            Share of spots of new patients that lie between them, one of `levels`.
        genes
            Names of the genes, upper and lower case alike; default those of the model.

        Returns
        -------
        Two arrays (n, genes), NaN where nothing is predicted or known of a gene.
        """
        return (self.spread if genes is None else self._of(genes)).limits(predicted, coverage)

    def _of(self, genes: Sequence[str]) -> Spread:
        """The same of some genes, in their order; NaN of others."""
        column = {name.upper(): i for i, name in reversed(list(enumerate(self.genes)))}
        at = np.array([column.get(name.upper(), -1) for name in genes], dtype=int)
        parts = (self.spread.constant, self.spread.slope, self.spread.reach)
        return Spread(*(np.where(at < 0, np.nan, values[..., at]) for values in parts))

    def summary(self) -> str:
        """In one line, what is known."""
        whose = "" if self.held_out == PATIENTS else " of patients that were seen"
        return f"of {int(self.known.sum()):,} genes, by {self.n_held_out} held-out {self.held_out}{whose}"

    def __repr__(self) -> str:
        return f"Intervals of model {self.model}: {self.summary()}"

    def _repr_html_(self) -> str:
        return text_as_html(repr(self))


def intervals_of(
    model: str, residuals: Sequence[Residuals], genes: Sequence[str], *, by: str, readout: str, views: int
) -> Intervals:
    """Intervals of a model (its fingerprint) from its held-out sections, see `fit_intervals`."""
    spread = fit_intervals(residuals, by=by)
    n = len({one.patient if by == "patient" else one.section for one in residuals})
    return Intervals(spread, tuple(genes), model, HELD_OUT[by], n, readout, views)


def written_intervals(intervals: Intervals) -> str:
    """The text of its file, see `table_text`."""
    facts = {name: getattr(intervals, name) for name in _Facts.model_fields}
    spread = intervals.spread
    columns = [values.tolist() for values in (spread.constant, spread.slope, *spread.reach)]
    return table_text(facts, _COLUMNS, zip(map(_plain, intervals.genes), *columns, strict=True))


def read_intervals(path: Path, *, model: str, genes: Sequence[str]) -> Intervals:
    """What `written_intervals` wrote, checked to be of the model with this fingerprint and these genes."""
    where = place_of(path)
    facts, rows = read_table(path, _Facts, _COLUMNS, model=model, without="has no intervals")
    found = [_Row.of(cells, where=place, cells=True) for cells, place in rows]
    if [row.name for row in found] != list(map(_plain, genes)):
        raise CheckpointError(f"{where} is damaged: its {len(found)} rows are not the {len(genes)} genes of the panel.")
    values = np.array([[getattr(row, name) for row in found] for name in _COLUMNS[1:]], dtype=float)
    some, every = (test(np.isfinite(values), axis=0) for test in (np.any, np.all))
    if (some != every).any() or (np.diff(values[2:], axis=0) < 0).any():
        raise CheckpointError(f"{where} is damaged: a gene must have all numbers or none, which rise with the share.")
    spread = Spread(values[0], values[1], values[2:])
    return Intervals(spread, tuple(genes), facts.model, facts.held_out, facts.n_held_out, facts.readout, facts.views)


def _plain(name: str) -> str:
    return " ".join(name.split())
