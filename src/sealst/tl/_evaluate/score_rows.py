"""From predictions to the rows of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData

from sealst._core.genes.panel import GenePanel
from sealst._core.rows import unit_rows
from sealst._core.scores.genes import (
    SET_METRICS,
    gene_scores,
    mean_with_interval,
    pooled_scores,
    spatial_graph,
    spot_scores,
)
from sealst._core.scores.metrics import near_ranks, near_recall, recall_at_k, retrieval_ranks
from sealst._core.search.exact import top_k
from sealst._core.splits import evenly
from sealst._keys import Keys
from sealst._logging import logger, warn
from sealst.models import SealModel
from sealst.tl._evaluate.changes import Changes
from sealst.tl._evaluate.methods import FROZEN_PROBE, HEAD, MEAN, PREDICTED, ST_NET, Predictions
from sealst.tl._evaluate.views import FROZEN, SEAL, SectionView

RECALL_AT = (1, 5, 10, 50)
#: larger results keep no maps
_MAX_SPOT_VALUES = 2**27
#: fewer sections say nothing about differences between them
_MIN_SECTIONS = 3
#: deviations below this are those of a gene that does not vary
_CONSTANT = 1e-6
#: one pool for all held-out sections only up to so many spots; of larger sections some, as work grows with their square
_MAX_POOL = 20_000
#: fewer spots leave a crop nothing to choose from
_MIN_CROPS = 3
REVERSE = "gene→image "
CROPS = "image→image "
NEAR = "near "
#: share of spots that intervals are to hold
INTERVAL = 0.9
#: columns of a row that say of which section it is; empty where it is of several
_LABELS = ("section", "patient", "organ", "technology")
#: what is compared, image side and gene side, by method
_Pairs: TypeAlias = dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass
class Results:
    """Rows of all folds."""

    table: list[dict[str, Any]] = field(default_factory=list)
    genes: list[pd.DataFrame] = field(default_factory=list)
    pathways: list[pd.DataFrame] = field(default_factory=list)
    #: held-out spots by section, a table for every fold
    spots: dict[str, list[AnnData]] = field(default_factory=dict)
    kept: int = 0
    #: what the model of a fold was made of
    models: dict[str, str] = field(default_factory=dict)

    #: what was scored after learning from parts of the training side
    curve: list[pd.DataFrame] = field(default_factory=list)
    #: gains over the frozen encoder's probe, (sections, genes), of every fold
    gains: list[dict[str, Any]] = field(default_factory=list)

    def add_overall(self, seed: int) -> None:
        """Append gains over all folds, where there are several."""
        if len({row["fold"] for row in self.table}) < 2 or not self.gains:
            return
        for (run, method, genes), rows in pd.DataFrame(self.gains).groupby(["seed", "method", "genes"], sort=False):
            value, low, high = mean_with_interval(pd.concat(list(rows["gain"])).to_numpy(), seed)
            row: dict[str, Any] = {"fold": "", "seed": run} | dict.fromkeys(_LABELS, "")
            row |= {"method": method, "metric": "pearson_difference", "genes": genes, "value": value}
            self.table.append(row | {"low": low, "high": high, "pool": np.nan, "chance": np.nan})


@dataclass(frozen=True)
class FoldScorer:
    """Scores one fold."""

    fold: str
    seed: int
    genes: GenePanel
    #: columns of the scored genes by set
    sets: Mapping[str, np.ndarray]
    #: mean and deviation (G,) of the training spots' expression
    centre: np.ndarray
    scale: np.ndarray
    bootstrap_seed: int
    near_um: float | None

    def add(self, held: Sequence[SectionView], predicted: Predictions, out: Results) -> None:
        """Append scores of every section, and of all together."""
        scored = []
        for i, view in enumerate(held):
            own = {method: parts[i] for method, parts in predicted.items()}
            # The same genes for every method: those that all can predict and the section measures.
            able = np.all([np.isfinite(values).all(axis=0) for values in own.values()], axis=0)
            if lost := int((view.known & ~able).sum()):
                logger.info("%s: %d genes that not every method can predict are not scored", view.name, lost)
            scored.append(view.known & able)
            self._section(view, own, scored[-1], out)
        self._together(held, predicted, scored, out)
        self._differences(out)

    def _section(self, view: SectionView, own: Mapping[str, np.ndarray], scored: np.ndarray, out: Results) -> None:
        columns = np.unique(np.concatenate(list(self.sets.values())))
        columns = columns[scored[columns]]
        graph = spatial_graph(view.xy)
        for method, values in own.items():
            if not len(columns):
                continue
            by_gene = gene_scores(values[:, columns], view.measured[:, columns], graph)
            by_gene.index = pd.Index(columns)
            for name, members in self.sets.items():
                kept = by_gene.loc[members[scored[members]]]
                for metric, reduce in SET_METRICS.items():
                    value, low, high = reduce(kept, self.bootstrap_seed)
                    out.table.append(self._row(view, method, metric, value, genes=name, low=low, high=high))
                # A gene that does not vary in training has no unit to measure deviations in.
                own_unit = members[scored[members] & (self.scale[members] > _CONSTANT)]
                moments = self.centre[own_unit], self.scale[own_unit]
                found = spot_scores(values[:, own_unit], view.measured[:, own_unit], *moments)
                self._means(view, method, "spot_", name, found, out)
            facts = {"fold": self.fold, "seed": self.seed, "section": view.name, "patient": view.patient}
            names = [self.genes.genes[i] for i in by_gene.index]
            out.genes.append(by_gene.reset_index(drop=True).assign(**facts, method=method, gene=names))
        self._keep_maps(view, own, columns, out)

    def _keep_maps(self, view: SectionView, own: Mapping[str, np.ndarray], columns: np.ndarray, out: Results) -> None:
        size = len(view) * len(columns) * (len(own) + 1)
        # Of several seeds the first is shown.
        again = any(self.fold == part.uns["fold"] for part in out.spots.get(view.name, []))
        if again or not len(columns):
            return
        if out.kept + size > _MAX_SPOT_VALUES:
            logger.info("%s: too many spots to keep maps of", view.name)
            return
        out.kept += size
        maps = AnnData(
            np.ascontiguousarray(view.measured[:, columns], dtype=np.float32),
            obs=pd.DataFrame(index=pd.Index(view.spots.astype(str))),
            var=pd.DataFrame(index=pd.Index([self.genes.genes[i] for i in columns])),
            layers={method: values[:, columns].astype(np.float32) for method, values in own.items()},
            obsm={Keys.SPATIAL: view.xy} if np.isfinite(view.xy).all() else {},
            uns={"fold": self.fold},
        )
        out.spots.setdefault(view.name, []).append(maps)

    def _together(
        self, held: Sequence[SectionView], predicted: Predictions, scored: Sequence[np.ndarray], out: Results
    ) -> None:
        """Scores over all held-out spots of the fold, and over the mean expression of its sections."""
        everywhere = np.all(scored, axis=0)
        # Of all spots differences between sections count too.
        joins: dict[str, Callable[[list[np.ndarray]], np.ndarray]] = {"": np.concatenate}
        if len(held) >= _MIN_SECTIONS:
            # Not over folds: the mean of the training sections falls where that of the one left out rises.
            joins["section_"] = lambda parts: np.stack([part.mean(axis=0, dtype=np.float64) for part in parts])
        for prefix, join in joins.items():
            # Of sets alone, as all genes of all spots may be more than fits into memory.
            usable = {name: members[everywhere[members]] for name, members in self.sets.items()}
            measured = {name: join([view.measured[:, c] for view in held]) for name, c in usable.items()}
            for method, parts in predicted.items():
                for name, columns in usable.items():
                    found = pooled_scores(join([part[:, columns] for part in parts]), measured[name])
                    self._means(None, method, prefix, name, found, out)

    def _means(
        self, view: SectionView | None, method: str, prefix: str, genes: str, found: dict[str, np.ndarray], out: Results
    ) -> None:
        """Mean and interval of every metric, over genes or over spots."""
        for metric, values in found.items():
            value, low, high = mean_with_interval(values, self.bootstrap_seed)
            out.table.append(self._row(view, method, prefix + metric, value, genes=genes, low=low, high=high))

    def _differences(self, out: Results) -> None:
        """Gain over the frozen encoder's probe, paired by gene and section."""
        mine = [f for f in out.genes if f["fold"].iloc[0] == self.fold and f["seed"].iloc[0] == self.seed]
        if not mine:
            return
        wide = pd.concat(mine).pivot_table(index="section", columns=["method", "gene"], values="pearson")
        names = {name: [self.genes.genes[i] for i in members] for name, members in self.sets.items()}
        methods = [m for m in wide.columns.get_level_values(0).unique() if m not in (FROZEN_PROBE, MEAN)]
        for method in methods:
            gain = wide[method] - wide[FROZEN_PROBE]
            for name, members in names.items():
                table = gain.reindex(columns=members)
                out.gains.append({"seed": self.seed, "method": method, "genes": name, "gain": table})
                value, low, high = mean_with_interval(table.to_numpy(), self.bootstrap_seed)
                out.table.append(self._row(None, method, "pearson_difference", value, genes=name, low=low, high=high))

    def add_retrieval(
        self, held: Sequence[SectionView], predicted: Predictions, models: Mapping[str, SealModel], out: Results
    ) -> None:
        """Append recall of every section, and of all in one pool."""
        if SEAL not in models or SEAL not in held[0].codes:
            return
        pooled = len(held) > 1 and sum(map(len, held)) <= _MAX_POOL
        kept: list[tuple[_Pairs, np.ndarray]] = []
        for i, view in enumerate(held):
            some, predicted_of = evenly(len(view), _MAX_POOL), _in_programs(view, models[SEAL])
            if len(some) < len(view):
                logger.info("%s: %d of %d spots are the pool of retrieval", view.name, len(some), len(view))
                view = view.take(view.spots[some])
            one = _pairs(view, predicted[FROZEN_PROBE][i][some], models, self.genes)
            one |= {name: (image[some], gene[some]) for name, (image, gene) in predicted_of.items()}
            xy = None if self.near_um is None else view.xy
            if xy is not None and not np.isfinite(xy).all():
                warn(
                    f"Positions of the spots of {view.name!r} in µm are not known; it has no scores of hits nearby "
                    "(`near_um`)."
                )
                xy = None
            self._recalls(view, one, xy, out)
            # Measured expression of single spots as deviations from the training mean; 0 where none is known.
            told = view.known & (self.scale > _CONSTANT)
            profile = np.where(told, (view.measured - self.centre) / np.where(told, self.scale, 1), 0)
            self._among_crops(view, one, profile, out)
            if pooled:
                kept.append((one, profile))
        if pooled:
            image, gene = ({m: np.concatenate([one[m][i] for one, _ in kept]) for m in kept[0][0]} for i in (0, 1))
            pool = {method: (image[method], gene[method]) for method in image}
            self._recalls(None, pool, None, out)
            self._among_crops(None, pool, np.concatenate([profile for _, profile in kept]), out)

    def add_intervals(
        self, held: Sequence[SectionView], predicted: Predictions, models: Mapping[str, SealModel], out: Results
    ) -> None:
        """Append how often intervals of what the model predicts hold what was measured, and how wide they are."""
        known = models[SEAL].intervals if SEAL in models else None
        method = PREDICTED if PREDICTED in predicted else HEAD
        if known is None or method not in predicted:
            return
        for view, values in zip(held, predicted[method], strict=True):
            low, high = known.limits(values, INTERVAL, genes=self.genes.genes)
            inside = (view.measured >= low) & (view.measured <= high)
            for name, members in self.sets.items():
                kept = members[view.known[members] & np.isfinite(high[:, members]).all(axis=0)]
                if not len(kept):
                    continue
                found = {"coverage": inside[:, kept].mean(axis=0), "width": (high - low)[:, kept].mean(axis=0)}
                self._means(view, method, "", name, found, out)

    def add_changes(
        self, seen: Sequence[SectionView], held: Sequence[SectionView], changes: Changes, out: Results
    ) -> None:
        """Append what the alignment changed beside prediction."""
        for found in changes.rows(seen, held):
            view, method, metric = (found.pop(name) for name in ("view", "method", "metric"))
            out.table.append(self._row(view, method, metric, **found))

    def _among_crops(self, view: SectionView | None, pairs: _Pairs, profile: np.ndarray, out: Results) -> None:
        """Recall of the other spot whose measured expression is most similar, by similarity of the images."""
        own = np.arange(len(profile))
        if len(own) < _MIN_CROPS:
            return
        # The query itself is among the two most similar, unless more than one is equal to it.
        near = top_k(profile, unit_rows(profile).astype(np.float32), 2)[0]
        wanted = np.where(near[:, 0] == own, near[:, 1], near[:, 0])
        for method, (image, _) in pairs.items():
            found = recall_at_k(retrieval_ranks(image, image, wanted, left_out=own), RECALL_AT, len(own) - 1)
            for k in RECALL_AT:
                row = {"pool": len(own) - 1, "chance": found[f"chance@{k}"]}
                out.table.append(self._row(view, method, f"{CROPS}R@{k}", found[f"R@{k}"], **row))
            row = {"pool": len(own) - 1, "chance": len(own) / 2}
            out.table.append(self._row(view, method, f"{CROPS}median_rank", found["median_rank"], **row))

    def _recalls(self, view: SectionView | None, pairs: _Pairs, xy: np.ndarray | None, out: Results) -> None:
        for method, (image, gene) in pairs.items():
            own = np.arange(len(image))
            for prefix, query, pool in (("", image, gene), (REVERSE, gene, image)):
                found = recall_at_k(retrieval_ranks(query, pool, own), RECALL_AT, len(own))
                for k in RECALL_AT:
                    row = {"pool": len(own), "chance": found[f"chance@{k}"]}
                    out.table.append(self._row(view, method, f"{prefix}R@{k}", found[f"R@{k}"], **row))
                row = {"pool": len(own), "chance": (len(own) + 1) / 2}
                out.table.append(self._row(view, method, f"{prefix}median_rank", found["median_rank"], **row))
                if xy is not None and self.near_um:
                    near = near_recall(*near_ranks(query, pool, xy, self.near_um), RECALL_AT)
                    for k, (value, chance) in near.items():
                        row = {"pool": len(own), "chance": chance}
                        out.table.append(self._row(view, method, f"{NEAR}{prefix}R@{k}", value, **row))

    def _row(self, view: SectionView | None, method: str, metric: str, value: float, **more: Any) -> dict[str, Any]:
        facts = ("name", "patient", "organ", "technology")
        labels = {w: "" if view is None else getattr(view, f) for w, f in zip(_LABELS, facts, strict=True)}
        empty = {"genes": "", "low": np.nan, "high": np.nan, "pool": np.nan, "chance": np.nan}
        head = {"fold": self.fold, "seed": self.seed} | labels
        return head | {"method": method, "metric": metric, "genes": "", "value": float(value)} | (empty | more)


def _pairs(
    view: SectionView, frozen_prediction: np.ndarray, models: Mapping[str, SealModel], genes: GenePanel
) -> _Pairs:
    panel = models[SEAL].panel
    sides: _Pairs = {
        "adapted": (view.shared[SEAL], view.codes[SEAL]),
        "frozen": (view.shared[FROZEN], view.codes[SEAL]),
    }
    sides |= {name: (view.shared[name], view.codes[name]) for name in models if name not in (SEAL, ST_NET)}
    if genes.genes == panel.genes:
        known = view.known & np.isfinite(frozen_prediction).all(axis=0)
        # As the gene encoder sees it: the mean where a gene was not measured.
        seen = [np.where(known, (x - panel.mean) / panel.std, 0) for x in (frozen_prediction, view.context)]
        sides[FROZEN_PROBE] = (seen[0], seen[1])
    return sides


def _in_programs(view: SectionView, model: SealModel) -> _Pairs:
    """Both sides as `tl.retrieve` compares by expression, less what is common to the section; empty without a readout.

    Of a whole section: a readout sees what lies around a spot.
    """
    readout = view.search_readout(model)
    if readout is None:
        return {}
    image = model.image_programs(view.features[SEAL], readout=readout, xy=view.xy)
    deviation = view.context - view.context.mean(axis=0, dtype=np.float64)
    return {PREDICTED: (image, model.programs_of(readout).of_profiles(deviation))}
