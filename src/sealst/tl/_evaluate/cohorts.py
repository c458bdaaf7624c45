"""Where an evaluation's spots come from: sections with crops, or the files of HEST-bench."""

from __future__ import annotations

from collections.abc import Collection as Names
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import pandas as pd
from spatialdata import SpatialData
from spatialdata.models import TableModel

from sealst import _section
from sealst._core.genes.panel import GenePanel
from sealst._errors import DataError
from sealst._section import Data, Part, parts_at, parts_of
from sealst._validate import listed
from sealst.io import HestBench
from sealst.models import CropSpec
from sealst.pp import Split, check_split, normalize
from sealst.tl._embed.inputs import as_sections
from sealst.tl._evaluate.folds import given_fold, made_folds, picked, side_tables, stopping_split
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
        return side_tables(self.parts(), fold.train) if self._cut(fold) else self.sections(fold)

    def whole(self, fold: Split) -> Sequence[SpatialData]:
        """Training sections of a fold that cuts through none."""
        if cut := self._cut(fold):
            raise DataError(
                f"Training a model in every fold needs folds of whole sections; fold {fold.name!r} cuts through "
                f"{listed(cut)}. Use `folds='patient'` or `folds='section'`."
            )
        return self.sections(fold)

    def sections(self, fold: Split) -> Sequence[SpatialData]:
        """Training sections of a fold; those that it takes part of come with a table of these spots alone."""
        sides = []
        for group, inside in zip(self.groups, self._inside, strict=True):
            taken = [i for i, parts in enumerate(inside) if any(part.section in fold.train for part in parts)]
            cut = {
                i: _reduced(group[i], inside[i], fold, self.table_key) for i in taken if _takes_part(inside[i], fold)
            }
            sides += [picked(group, taken, instead=cut)] if taken else []
        return sides[0] if len(sides) == 1 else [sdata for side in sides for sdata in side]

    def stopping(self, fold: Split) -> Split:
        """The training side of a fold divided once more, for early stopping; its test side is what it stops by."""
        inner = stopping_split(self.sections(fold), fold.name, self.table_key)
        if cut := self._cut(inner, of=fold):
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

    def _cut(self, fold: Split, of: Split | None = None) -> list[str]:
        """Sections that a fold takes part of (of the training side of another), or that it must take beside others."""
        whole = {part.section: part.obs_names for part in self.parts()} if of is None else of.train
        cut = [name for name, spots in fold.train.items() if len(spots) != len(whole[name])]
        for group in self._inside:
            for parts in group:
                names = [part.section for part in parts if part.section in whole]
                taken = [name in fold.train for name in names]
                cut += names if any(taken) and not all(taken) else []
        return sorted(set(cut))


def _takes_part(parts: Sequence[Part], fold: Split) -> bool:
    """Whether a fold trains on some of the spots of a SpatialData and not on all of them."""
    return any(len(fold.train.get(part.section, ())) != len(part.obs_names) for part in parts)


def _reduced(sdata: SpatialData, parts: Sequence[Part], fold: Split, table_key: str) -> SpatialData:
    """A SpatialData with the spots alone that a fold trains on; pictures and shapes are shared."""
    rows = [
        part.rows[np.isin(part.obs_names, fold.train[part.section])] for part in parts if part.section in fold.train
    ]
    table = _section.get_table(sdata, table_key)[np.sort(np.concatenate(rows))].copy()
    attrs = table.uns.get(TableModel.ATTRS_KEY)
    if attrs is not None:
        # A table may not name a region that none of its rows belongs to.
        known = table.obs[attrs["region_key"]].astype(str).unique().tolist()
        table.uns[TableModel.ATTRS_KEY] = dict(attrs) | {"region": known}
        table.obs[attrs["region_key"]] = pd.Categorical(table.obs[attrs["region_key"]].astype(str))
    return cast(SpatialData, _section.with_table(sdata, table_key, table))


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


def cohort_of(
    sections: Any, test: Any, folds: str | Sequence[Split], allow_shared: bool, table_key: str
) -> tuple[Cohort, list[Split]]:
    """Sections of an evaluation, and its folds."""
    if isinstance(sections, HestBench):
        if test is not None:
            raise DataError("A task of HEST-bench has its own test sides; leave `test` out.")
        bench = BenchCohort(sections)
        return bench, bench.folds()
    train = as_sections(sections, "sections")
    if test is None:
        made = made_folds(train, folds, allow_shared_patients=allow_shared, table_key=table_key)
        return SectionCohort([train], table_key), made
    held = as_sections(test, "test")
    if not allow_shared:
        check_split(train, held, table_key=table_key)
    return SectionCohort([train, held], table_key), given_fold(train, held, table_key)
