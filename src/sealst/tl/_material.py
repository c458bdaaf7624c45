"""Where an evaluation's spots come from: sections with crops, or the files of HEST-bench."""

from __future__ import annotations

from collections.abc import Collection as Names
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from spatialdata import SpatialData

from sealst import _section
from sealst._errors import DataError
from sealst._parts import Part, parts_of, section_regions
from sealst._section import Data
from sealst._validate import listed
from sealst.io import HestBench
from sealst.models import CropSpec
from sealst.pp import Split
from sealst.tl._folds import picked, side_tables
from sealst.tl._inputs import crop_spec
from sealst.tl._views import Looker, View


class Material(Protocol):
    """Sections of an evaluation."""

    def parts(self) -> list[Part]:
        """Names and spots of all sections."""
        ...

    def views(self, looker: Looker, names: Names[str]) -> Iterator[View]:
        """Views of the named sections."""
        ...

    def train_side(self, fold: Split) -> Sequence[Data]:
        """What may be known of a fold's training spots when genes are chosen."""
        ...

    def crop(self) -> CropSpec:
        """Size of the crops."""
        ...


class Sections:
    """SpatialData with paired crops, in one group or two (training, held-out); a collection opens one at a time."""

    def __init__(self, groups: Sequence[Sequence[SpatialData]], table_key: str) -> None:
        self.groups, self.table_key = groups, table_key

    def parts(self) -> list[Part]:
        """Names and spots of all sections."""
        return [part for group in self.groups for part in parts_of(group, self.table_key)]

    def views(self, looker: Looker, names: Names[str]) -> Iterator[View]:
        """Views of the named sections."""
        for group in self.groups:
            for i in range(len(group)):
                if any(name in names for name in self._names(group, i)):
                    yield from (view for view in looker.views(group[i]) if view.name in names)

    def train_side(self, fold: Split) -> Sequence[Data]:
        """Sections as they are where the fold takes them whole; tables of its own spots where it cuts through."""
        return side_tables(self.parts(), fold.train) if self._cut(fold) else self._chosen(fold)

    def whole(self, fold: Split) -> Sequence[SpatialData]:
        """Training sections of a fold that cuts through none."""
        if cut := self._cut(fold):
            raise DataError(
                f"Training a model in every fold needs folds of whole sections; fold {fold.name!r} cuts through "
                f"{listed(cut)}. Use `folds='patient'` or `folds='section'`."
            )
        return self._chosen(fold)

    def crop(self) -> CropSpec:
        """Size of the crops, which all sections share."""
        table = _section.get_table(self.groups[0][0], self.table_key)
        return crop_spec(table, _section.regions_of(table))

    def _names(self, group: Sequence[SpatialData], i: int) -> list[str]:
        return [r.section for r in section_regions(_section.get_table(group[i], self.table_key))]

    def _cut(self, fold: Split) -> list[str]:
        """Sections that a fold takes part of, or that share a SpatialData with one it does not take."""
        sizes = {part.name: len(part.obs_names) for part in self.parts()}
        cut = [name for name, spots in fold.train.items() if len(spots) != sizes[name]]
        for group in self.groups:
            for i in range(len(group)):
                names = self._names(group, i)
                inside = [name in fold.train for name in names]
                cut += names if any(inside) and not all(inside) else []
        return sorted(set(cut))

    def _chosen(self, fold: Split) -> Sequence[SpatialData]:
        sides = []
        for group in self.groups:
            chosen = [i for i in range(len(group)) if any(n in fold.train for n in self._names(group, i))]
            sides += [picked(group, chosen)] if chosen else []
        return sides[0] if len(sides) == 1 else [sdata for side in sides for sdata in side]


class Bench:
    """A task of HEST-bench: crops from its files."""

    def __init__(self, bench: HestBench) -> None:
        self.bench = bench

    def parts(self) -> list[Part]:
        """Names and spots of all samples."""
        return parts_of([self.bench.table(name) for name in self.bench.samples])

    def views(self, looker: Looker, names: Names[str]) -> Iterator[View]:
        """Views of the named samples."""
        for name in self.bench.samples:
            if name not in names:
                continue
            table = self.bench.table(name)
            values = np.concatenate([looker.extract(crops) for crops in self.bench.crops(name)])
            facts = {"name": name, "patient": "", "organ": "", "technology": "", "xy": self.bench.positions(name)}
            yield looker.view_of(table, np.arange(len(values)), values, facts=facts)

    def train_side(self, fold: Split) -> Sequence[Data]:
        """Tables of the fold's training samples."""
        return [self.bench.table(name) for name in fold.train]

    def crop(self) -> CropSpec:
        """Size of the patches."""
        return CropSpec(112.0, self.bench.crop_px)

    def folds(self) -> list[Split]:
        """Its published folds."""
        spots = {part.name: part.obs_names for part in self.parts()}
        return [
            Split({s: spots[s] for s in fold.train}, {s: spots[s] for s in fold.test}, f"split-{k}")
            for k, fold in enumerate(self.bench.folds)
        ]
