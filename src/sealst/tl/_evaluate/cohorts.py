"""Where an evaluation's spots come from: sections with crops, or the files of HEST-bench."""

from __future__ import annotations

from collections.abc import Collection as Names
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
from spatialdata import SpatialData

from sealst import _section
from sealst._core.genes.panel import GenePanel
from sealst._errors import DataError
from sealst._section import Data, Part, parts_at, parts_of
from sealst._validate import listed
from sealst.io import HestBench
from sealst.models import CropSpec
from sealst.pp import Split, normalize
from sealst.tl._evaluate.folds import picked, side_tables, stopping_split
from sealst.tl._evaluate.scored_genes import hest_genes
from sealst.tl._evaluate.views import SectionReader, SectionView


class SectionCohort:
    """SpatialData with paired crops, in one group or two (training, held-out); a collection opens one at a time."""

    def __init__(self, groups: Sequence[Sequence[SpatialData]], table_key: str) -> None:
        self.groups, self.table_key = groups, table_key
        #: parts of every SpatialData, by group; they hold names, no data
        self._inside = [[parts_at(group, i, table_key) for i in range(len(group))] for group in groups]

    def parts(self) -> list[Part]:
        """Names and spots of all sections."""
        found = [part for group in self._inside for parts in group for part in parts]
        names = [part.section for part in found]
        if double := sorted({n for n in names if names.count(n) > 1}):
            raise DataError(f"Section name(s) {listed(double)} occur twice; tell them apart in `.obs['section']`.")
        return found

    def views(self, reader: SectionReader, names: Names[str]) -> Iterator[SectionView]:
        """Views of the named sections."""
        for group, inside in zip(self.groups, self._inside, strict=True):
            for i, parts in enumerate(inside):
                if any(part.section in names for part in parts):
                    yield from (view for view in reader.read(group[i]) if view.name in names)

    def train_side(self, fold: Split) -> Sequence[Data]:
        """What may be known of training spots when genes are chosen: sections that the fold takes whole, or tables."""
        return side_tables(self.parts(), fold.train) if self._cut(fold) else self._chosen(fold)

    def whole(self, fold: Split) -> Sequence[SpatialData]:
        """Training sections of a fold that cuts through none."""
        if cut := self._cut(fold):
            raise DataError(
                f"Training a model in every fold needs folds of whole sections; fold {fold.name!r} cuts through "
                f"{listed(cut)}. Use `folds='patient'` or `folds='section'`."
            )
        return self._chosen(fold)

    def stopping(self, fold: Split) -> Split:
        """The training side of a fold divided once more, for early stopping; its test side is what it stops by."""
        inner = stopping_split(self.whole(fold), fold.name, self.table_key)
        if cut := self._cut(inner):
            raise DataError(
                f"`params.patience` holds out training sections to stop by, but {listed(cut)} of fold {fold.name!r} "
                "cannot be divided: spots of several patients or sections share a SpatialData. Keep one section of one "
                "patient in each, or leave `patience` out."
            )
        return inner

    def crop(self) -> CropSpec:
        """Size of the crops, which all sections share."""
        table = _section.get_table(self.groups[0][0], self.table_key)
        return _section.crop_size(table, _section.regions_of(table))

    def hest_genes(self, n: int, panel: GenePanel | None) -> list[str]:
        """Genes that HEST-bench's protocol scores, chosen over all sections."""
        return hest_genes(self.parts(), n, panel)

    def _cut(self, fold: Split) -> list[str]:
        """Sections that a fold takes part of, or that share a SpatialData with one it does not take."""
        cut = [
            p.section
            for p in self.parts()
            if p.section in fold.train and len(fold.train[p.section]) != len(p.obs_names)
        ]
        for group in self._inside:
            for parts in group:
                taken = [part.section in fold.train for part in parts]
                cut += [part.section for part in parts] if any(taken) and not all(taken) else []
        return sorted(set(cut))

    def _chosen(self, fold: Split) -> Sequence[SpatialData]:
        sides = []
        for group, inside in zip(self.groups, self._inside, strict=True):
            chosen = [i for i, parts in enumerate(inside) if any(part.section in fold.train for part in parts)]
            sides += [picked(group, chosen)] if chosen else []
        return sides[0] if len(sides) == 1 else [sdata for side in sides for sdata in side]


class BenchCohort:
    """A task of HEST-bench: crops from its files, tables in memory."""

    def __init__(self, bench: HestBench) -> None:
        self.bench = bench
        self._tables = {name: bench.table(name) for name in bench.samples}
        for table in self._tables.values():
            normalize(table, context=False)

    def parts(self) -> list[Part]:
        """Names and spots of all samples."""
        return parts_of(list(self._tables.values()))

    def views(self, reader: SectionReader, names: Names[str]) -> Iterator[SectionView]:
        """Views of the named samples."""
        for name, table in self._tables.items():
            if name in names:
                values = np.concatenate([reader.extract(crops) for crops in self.bench.crops(name)])
                facts = {"name": name, "organ": "", "technology": "", "xy": self.bench.positions(name), "in_um": False}
                facts["patients"] = np.full(len(values), "")
                yield reader.view_of(table, np.arange(len(values)), values, facts=facts)

    def train_side(self, fold: Split) -> Sequence[Data]:
        """Tables of the fold's training samples."""
        return [self._tables[name] for name in fold.train]

    def crop(self) -> CropSpec:
        """Size of the patches."""
        return CropSpec(112.0, self.bench.crop_px)

    def hest_genes(self, n: int, panel: GenePanel | None) -> list[str]:
        """The task's own genes."""
        return list(self.bench.genes)

    def folds(self) -> list[Split]:
        """Its published folds."""
        spots = {part.section: part.obs_names for part in self.parts()}
        return [
            Split({s: spots[s] for s in train}, {s: spots[s] for s in test}, f"split-{k}")
            for k, (train, test) in enumerate(self.bench.folds)
        ]


#: sections of an evaluation
Cohort: TypeAlias = SectionCohort | BenchCohort
