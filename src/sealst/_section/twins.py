"""Sections that are the same one under two names: by their counts, and by the pixels under their spots."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from anndata import AnnData
from spatialdata import SpatialData

from sealst._core.splits import profile_digests
from sealst._data.crops.plain import PlainCrops
from sealst._data.crops.reader import read_crops
from sealst._errors import LeakError, SealstError
from sealst._keys import Keys
from sealst._section.images import find_image, he_image, image_levels, spot_centres, spot_table
from sealst._section.parts import Part
from sealst._section.records import recorded
from sealst._validate import listed

#: a test section with more copies of training spots than this share is refused
_MAX_COPIES = 0.02
#: where in the box around its spots a picture is looked at, as shares of width and height
_LOOKED_AT = (0.15, 0.5, 0.85)
#: side of what is looked at, in pixels of the finest level
_WINDOW = 24
#: so many of these places must show the same
_ALIKE = 3


@dataclass(frozen=True)
class Likeness:
    """By what a section is known again."""

    #: digest of the counts of every spot by name; 0 where too few genes are detected
    spots: dict[str, int]
    #: digests of pixels under some spots; none of a table alone, or where they are of a single colour
    pixels: frozenset[str]

    def of(self, spots: Iterable[str]) -> Likeness:
        """The same of some of its spots."""
        return replace(self, spots={spot: self.spots[spot] for spot in spots})


def likeness_of(part: Part) -> Likeness:
    """Digests of a section's counts and of its picture."""
    data, table = part.data, part.table
    counts = table.layers.get(Keys.COUNTS, table.X)
    found = np.zeros(len(part.rows), dtype=np.uint64)
    if counts is not None:
        found = profile_digests(counts[part.rows], [str(name).upper() for name in table.var_names])
    pixels = _pixels(data, table, part) if isinstance(data, SpatialData) else frozenset()
    return Likeness(dict(zip(part.obs_names, found.tolist(), strict=True)), pixels)


def _pixels(sdata: SpatialData, table: AnnData, part: Part) -> frozenset[str]:
    paired = recorded(table, "crops").get(part.name, {})
    try:
        image = he_image(sdata, find_image(sdata, part, paired.get("image_key")))
        centres = spot_centres(image, spot_table(sdata, part), paired.get("coordinate_system", "global"))
    except SealstError:
        # A section without a picture, or without one that can be read, is known by its counts.
        return frozenset()
    low, high = centres.min(axis=0), centres.max(axis=0)
    places = [low + (high - low) * [x, y] for y in _LOOKED_AT for x in _LOOKED_AT]
    nearest = np.unique([int(np.linalg.norm(centres - place, axis=1).argmin()) for place in places])
    corners = np.floor(centres[nearest]) - _WINDOW // 2
    crops = read_crops(image_levels(image)[:1], np.hstack([corners, corners + _WINDOW]), _WINDOW)
    counted = [PlainCrops(part.section) for _ in crops]
    for one, crop in zip(counted, crops, strict=True):
        one.add(crop[None])
    shown = [crop for one, crop in zip(counted, crops, strict=True) if not one.plain]
    return frozenset(hashlib.sha256(crop.tobytes()).hexdigest()[:16] for crop in shown)


def refuse_twins(
    train: Mapping[str, Likeness], test: Mapping[str, Likeness], *, fold: str = "", hint: str = ""
) -> None:
    """Refuse test sections that are training sections again, under whatever name of section or patient.

    Parameters
    ----------
    train, test
        What is known of either side, by section.
    fold
        Name of the fold, for messages.
    hint
        What else to do, for messages.

    Raises
    ------
    LeakError
        When spots of a test section have the counts of training spots, or both have one picture.
    """
    where = f"Fold {fold!r}: " if fold else ""
    seen = {digest: name for name, one in train.items() for digest in one.spots.values() if digest}
    for name, own in test.items():
        copies = [seen[digest] for digest in own.spots.values() if digest in seen]
        if len(copies) > _MAX_COPIES * len(own.spots):
            raise LeakError(
                f"{where}{len(copies)} of {len(own.spots)} test spots of section {name!r} have exactly the counts of "
                f"training spots of {listed(sorted(set(copies)))}. They are copies, whatever their patients are "
                f"called; leave one out. {hint}".rstrip()
            )
        # Blocks of one section share its picture.
        alike = [one for one in train if one != name and len(own.pixels & train[one].pixels) >= _ALIKE]
        if alike:
            raise LeakError(
                f"{where}The picture under the spots of test section {name!r} is that of training section(s) "
                f"{listed(alike)}, pixel by pixel. They are one section, whatever their patients are called; leave one "
                f"out. {hint}".rstrip()
            )


class _Fold(Protocol):
    """Names of the spots on either side, by section."""

    @property
    def name(self) -> str: ...

    @property
    def train(self) -> Mapping[str, np.ndarray]: ...

    @property
    def test(self) -> Mapping[str, np.ndarray]: ...


def refuse_twin_folds(parts: Sequence[Part], folds: Sequence[_Fold]) -> None:
    """Refuse folds that test on a training section, under whatever name of section or patient."""
    known = {part.section: likeness_of(part) for part in parts}
    for fold in folds:
        sides = [{name: known[name].of(spots) for name, spots in side.items()} for side in (fold.train, fold.test)]
        hint = "`allow_shared_patients=True` goes on all the same."
        refuse_twins(sides[0], sides[1], fold=fold.name, hint=hint)
