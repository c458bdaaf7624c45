"""How far a model's predictions can be believed, gene by gene: a table that is kept with the model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field

from sealst._core.scores.reliability import BETTER, COUNTS, GENE, KINDS, NUMBERS, SectionScores, reliability_table
from sealst._errors import CheckpointError
from sealst._files import TABLE_BYTES, read_text
from sealst._given.schema import Finite, Name, Names, Number, Share, Stored, one_of
from sealst._html import text_as_html

RELIABILITY_FILE = "reliability.tsv"
#: what models say that have none
UNKNOWN = "unknown (nothing was held out; see `crossfit` of `sl.tl.finetune`)"
#: what may be held out
PATIENTS, SECTIONS = "patients", "sections"
_HELD_OUT = {"patient": PATIENTS, "section": SECTIONS}
_COLUMNS = ("name", "kind", *NUMBERS, BETTER, *COUNTS)

_Correlation = Annotated[float, Field(ge=-1, le=1)]


class _Facts(Stored):
    """What the lines above the table say."""

    model: Name
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
    better_than_chance: bool
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
        held_out=_HELD_OUT[by],
        patients=tuple(sorted({one.patient for one in scores})),
        sections=tuple(one.section for one in scores),
    )


def written(reliability: Reliability) -> str:
    """The text of its file: lines ``# key: value``, then a tab-separated table in which unknown values are empty."""
    facts = {"model": reliability.model, "held_out": reliability.held_out}
    lists = {"patients": list(reliability.patients), "sections": list(reliability.sections)}
    lines = [f"# {key}: {json.dumps(value)}" for key, value in (facts | lists).items()]
    rows = reliability.table[list(_COLUMNS)].itertuples(index=False)
    # Numbers in full, so that reading gives back the same.
    cells = [["" if v != v else repr(v) if isinstance(v, float) else str(v) for v in row] for row in rows]
    return "\n".join([*lines, "\t".join(_COLUMNS), *map("\t".join, cells)]) + "\n"


def read_reliability(path: Path, *, model: str) -> Reliability:
    """What `written` wrote, checked to be of the model with this fingerprint."""
    lines = read_text(path, kind=CheckpointError, most=TABLE_BYTES).rstrip("\n").split("\n")
    n_facts = next((i for i, line in enumerate(lines) if not line.startswith("# ")), len(lines))
    where = f"{path.name} in {str(path.parent)!r}"
    facts = _Facts.of(_facts(lines[:n_facts], where), where=where)
    if facts.model != model:
        raise CheckpointError(
            f"{where} is of the model {facts.model}, not of {model}, which lies beside it. Remove the file; the model "
            "then says that its reliability is unknown."
        )
    header, *rows = [line.split("\t") for line in lines[n_facts:]] or [[]]
    if absent := [name for name in _COLUMNS if name not in header]:
        raise CheckpointError(f"{where} is damaged: it has no column {absent[0]!r}.")
    named = [dict(zip(header, row, strict=False)) for row in rows]
    found = [_Row.of(cells, where=f"{where}, row {i}", cells=True) for i, cells in enumerate(named, 1)]
    frame = pd.DataFrame([one.model_dump() for one in found], columns=list(_COLUMNS))
    frame = frame.astype(dict.fromkeys(NUMBERS, float) | dict.fromkeys(COUNTS, np.int64) | {BETTER: bool})
    return Reliability(frame, facts.model, facts.held_out, facts.patients, facts.sections)


def _facts(lines: Sequence[str], where: str) -> dict[str, Any]:
    try:
        pairs = [line.removeprefix("# ").split(": ", 1) for line in lines]
        return {key: json.loads(value) for key, value in pairs}
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is damaged: {str(error)[:200]}") from error
