"""How far a model's predictions can be believed, gene by gene: a table that is kept with the model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field

from sealst._core.scores.reliability import (
    BETTER,
    COUNTS,
    GENE,
    HELD_OUT,
    KINDS,
    NUMBERS,
    PATIENTS,
    SECTIONS,
    SectionScores,
    reliability_table,
)
from sealst._given.schema import Finite, Name, Names, Number, Share, Stored, Truth, one_of
from sealst._html import text_as_html
from sealst.models._stored_table import OfModel, read_table, table_text

RELIABILITY_FILE = "reliability.tsv"
#: what models say that have none
UNKNOWN = "unknown (nothing was held out; see `crossfit` of `sl.tl.finetune`)"
_COLUMNS = ("name", "kind", *NUMBERS, BETTER, *COUNTS)

_Correlation = Annotated[float, Field(ge=-1, le=1)]


class _Facts(OfModel):
    """What the lines above the table say."""

    held_out: Annotated[str, one_of(PATIENTS, SECTIONS)]
    patients: Names
    sections: Names


class _Row(Stored):
    """A row of the table; what is not known is None."""

    name: Name
    kind: Annotated[str, one_of(*KINDS)]
    pearson: _Correlation | None
    low: _Correlation | None
    high: _Correlation | None
    ceiling: Share | None
    explained: Finite | None
    slope: Finite | None
    pvalue: Share | None
    padj: Share | None
    better_than_chance: Truth
    n_patients: Number
    n_sections: Number
    n_spots: Number


@dataclass(frozen=True, eq=False, repr=False)
class Reliability:
    """How well a model predicts on patients that it has not seen, kept with it.

    Made by `sealst.tl.finetune` with ``crossfit=``, or by `SealModel.rely_on` from an evaluation.

    Attributes
    ----------
    table
        One row per gene (`kind` ``"gene"``), per set of genes (``"genes"``: means over the most variable and the most
        expressed) and per gene set (``"pathway"``: its activity). `pearson` of prediction and measured log1p-CP10k
        within held-out sections, the mean over patients, with `low` and `high` (95 %, over patients and spots);
        `ceiling`, the highest that single spots of this depth allow, and `explained`, the share of it that was reached;
        `slope` of measured on predicted; `pvalue`, `padj` and `better_than_chance` (false discoveries below 5 %);
        `n_patients`, `n_sections`, `n_spots`. NaN where unknown.
    model
        Fingerprint of the model.
    held_out
        ``"patients"``, or ``"sections"`` of patients that were seen.
    patients, sections
        Who and what was held out, in turn.
    """

    table: pd.DataFrame
    model: str
    held_out: str
    patients: tuple[str, ...]
    sections: tuple[str, ...]

    @property
    def genes(self) -> pd.DataFrame:
        """Rows of genes, by name."""
        return self.table[self.table["kind"] == GENE].set_index("name").drop(columns="kind")

    def of(self, genes: Iterable[str]) -> pd.DataFrame:
        """Rows of some genes, in their order, by upper-cased name; NaN (and not better than chance) where unknown."""
        names = [str(gene).upper() for gene in genes]
        known = self.genes
        known.index = known.index.str.upper()
        found = known[~known.index.duplicated()].reindex(names)
        return found.assign(**{BETTER: found[BETTER].eq(True)})

    def summary(self, genes: Sequence[str] | None = None) -> str:
        """In one line, how many genes (default: all) are predicted better than chance."""
        rows = self.genes if genes is None else self.of(genes)
        on = f"unseen {PATIENTS}" if self.held_out == PATIENTS else f"held-out {SECTIONS} of patients that were seen"
        median = rows["pearson"].median()
        said = f"; median r {median:.2f}" if np.isfinite(median) else ""
        if not rows["pvalue"].notna().any() and not rows[BETTER].any():
            return f"{len(rows):,} genes scored on {on}{said}; too few to tell genes from chance"
        return f"{int(rows[BETTER].sum()):,} of {len(rows):,} genes predicted better than chance on {on}{said}"

    def __repr__(self) -> str:
        n = len(self.patients) if self.held_out == PATIENTS else len(self.sections)
        return f"Reliability of model {self.model}: {self.summary()} ({n} {self.held_out} held out in turn)"

    def _repr_html_(self) -> str:
        return text_as_html(repr(self))


def reliability_of(
    model: str, scores: Sequence[SectionScores], genes: Sequence[str], *, by: str, **options: Any
) -> Reliability:
    """Reliability of a model (its fingerprint) from its held-out sections; `options` as of `reliability_table`."""
    table = reliability_table(scores, genes, by=by, **options)
    return Reliability(
        table=table.assign(name=[" ".join(name.split()) for name in table["name"]]),
        model=model,
        held_out=HELD_OUT[by],
        patients=tuple(sorted({one.patient for one in scores})),
        sections=tuple(one.section for one in scores),
    )


def written(reliability: Reliability) -> str:
    """The text of its file, see `table_text`."""
    facts = {"model": reliability.model, "held_out": reliability.held_out}
    lists = {"patients": list(reliability.patients), "sections": list(reliability.sections)}
    return table_text(facts | lists, _COLUMNS, reliability.table[list(_COLUMNS)].itertuples(index=False))


def read_reliability(path: Path, *, model: str) -> Reliability:
    """What `written` wrote, checked to be of the model with this fingerprint."""
    unknown = "says that its reliability is unknown"
    facts, rows = read_table(path, _Facts, _COLUMNS, model=model, without=unknown)
    found = [_Row.of(cells, where=place, cells=True) for cells, place in rows]
    frame = pd.DataFrame([one.model_dump() for one in found], columns=list(_COLUMNS))
    frame = frame.astype(dict.fromkeys(NUMBERS, float) | dict.fromkeys(COUNTS, np.int64) | {BETTER: bool})
    return Reliability(frame, facts.model, facts.held_out, facts.patients, facts.sections)
