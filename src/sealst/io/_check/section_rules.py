"""What `sealst.io.check` looks for around the image, one function per subject."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from spatialdata import SpatialData
from spatialdata.models import TableModel
from spatialdata.transformations import get_transformation

from sealst import _section
from sealst._core.space import lattice
from sealst._core.space.geometry import TOLERANCE, similarity_scale
from sealst._errors import DataError, MissingKeyError, SealstError
from sealst._keys import Keys
from sealst._section.colour import DARK, is_dark
from sealst._section.pyramid import is_computed
from sealst._validate import listed
from sealst.io._check.subject import Fact, Problem, Subject, collected_warnings, warnings_as_problems

_REDUCED = ("hires", "lowres", "downscaled", "thumbnail")
#: µm per pixel above which a nucleus is hardly a pixel wide
_COARSE_UM = 2.0
#: share of the image within the frame of the spots below which the two hardly belong together
_SMALL_COVERAGE = 0.02
#: median distance of spots from their places, in steps of the array, above which its rows and columns are of others
_OFF_ARRAY = 1.0
#: difference of the spots on tissue from which one reading of the axes is better than the other, and degrees by which
#: rows of a hexagonal array may be turned against x
_BETTER, _TURNED = 0.1, 15.0
#: share of a crop that must be tissue, as in `pp.tissue`; and pixels of a level that may be loaded for it
_MIN_TISSUE, _LOADED_PX = 0.15, 16_000_000

Finding = Fact | Problem


def elements(sdata: SpatialData) -> Iterator[Finding]:
    """Images, shapes and tables, whatever they are."""
    for name in sdata.images:
        levels = _section.image_levels(sdata.images[name])
        channels, height, width = levels[0].shape[-3:]
        sizes = f"{width} x {height} px, {channels} channels, {levels[0].dtype}, {len(levels)} level(s)"
        mpp = _section.mpp_of(sdata.images[name])
        yield Fact("elements", f"image {name!r}", sizes + (f", {mpp:.4g} µm/px" if mpp else ""))
        if len(levels) == 1 and max(width, height) > 4096:
            yield Problem(
                "warning",
                f"Image {name!r} has one scale of {width} x {height} px, so that coarse crops and pictures read all of "
                "it. Build the section with `sl.io.from_spatialdata(...)`, which adds coarser ones, or parse the image "
                "with `scale_factors=[2, 2, 2, 2]`.",
            )
    for name, shapes in sdata.shapes.items():
        kinds = "/".join(sorted(set(shapes.geometry.geom_type.str.lower())))
        yield Fact("elements", f"shapes {name!r}", f"{len(shapes)} {'circle' if 'radius' in shapes else kinds}(s)")
    for name, table in sdata.tables.items():
        regions = table.uns.get(TableModel.ATTRS_KEY, {}).get("region", "no region")
        text = f"{table.n_obs} x {table.n_vars}, annotates {regions if isinstance(regions, str) else listed(regions)}"
        yield Fact("elements", f"table {name!r}", text)
    for kind in ("labels", "points"):
        if names := list(getattr(sdata, kind)):
            yield Fact("elements", kind, listed(names))


def pictures(sdata: SpatialData) -> Iterator[Finding]:
    """Whether what is stored as red, green and blue looks like H&E."""
    for name in sdata.images:
        levels = [level for level in _section.image_levels(sdata.images[name]) if not is_computed(level)]
        usable = levels[0].dtype == np.uint8 and levels[0].shape[0] in (3, 4)
        if usable and levels[-1].size <= 3 * _LOADED_PX and is_dark([level.data for level in levels]):
            yield Problem("warning", f"Image {name!r} {DARK}")


def image(subject: Subject) -> Iterator[Finding]:
    """Whether the calls find the image, and whether it is one to train on."""
    name = subject.image_key
    _section.he_image(subject.sdata, name)
    yield Fact("image", "H&E", name)
    if subject.options.image_key is None:
        try:
            _section.find_image(subject.sdata, subject.region)
        except MissingKeyError as error:
            yield Problem("error", f"{error} The largest is looked at here: `image_key={name!r}`.")
    reduced = [word for word in _REDUCED if word in name.lower()]
    factor = None
    if subject.system in get_transformation(subject.element, get_all=True):
        factor = similarity_scale(_section.affine(subject.element, subject.system))
    if reduced or (factor is not None and factor > 1.5):
        why = (
            f"its name holds {reduced[0]!r}" if reduced else f"its pixels are {factor:.3g} units of {subject.system!r}"
        )
        yield Problem(
            "warning",
            f"Image {name!r} looks like a reduced copy ({why}): crops from it show no nuclei. Read the section with "
            "the full-resolution image (`sl.io.read_visium(path, image=...)`), or add it to `sdata.images`.",
        )


def scale(subject: Subject) -> Iterator[Finding]:
    """Every statement of the physical scale, whether used or not."""
    px, options = _pitch_px(subject), subject.options
    sources = _section.stated_scales(
        subject.element,
        subject.spots,
        subject.system,
        name=subject.region.name,
        mpp=options.mpp,
        pitch_um=options.pitch_um if px else None,
        spot_um=options.spot_um if "radius" in subject.spots else None,
    )
    stated = len(sources)
    for step, entry in subject.table.uns.get(Keys.UNS, {}).items():
        if isinstance(entry, dict) and "mpp" in entry:
            yield Fact("scale", f"stated by {step}", f"{entry['mpp']:.4g} µm/px ({entry.get('mpp_source', 'unknown')})")
    stated_technology = subject.table.obs.get(Keys.TECHNOLOGY)
    technology = "" if stated_technology is None else str(stated_technology.iloc[subject.region.rows[0]])
    um = known_pitch(subject, technology)
    if um is not None and px:
        sources[f"the pitch of {technology} ({um:g} µm)"] = um / px
    for name, value in sources.items():
        yield Fact("scale", name, f"{value:.4g} µm/px")
    if not sources:
        return
    name, first = next(iter(sources.items()))
    if not stated:
        yield Problem(
            "warning",
            f"No scale is stated for image {subject.image_key!r}; by {name} it would be {first:.4g} µm per pixel. "
            f"If that is right, pass `pitch_um={um:g}` to `sl.pp.pair_crops`.",
        )
        return
    yield Fact("scale", "used", f"{first:.4g} µm/px by {name}")
    # What is stated the calls compare themselves; the known pitch of a technology they do not look at.
    for other, value in list(sources.items())[stated:]:
        if abs(value - first) > TOLERANCE * first:
            yield Problem(
                "warning",
                f"The scale is {first:.4g} µm per pixel by {name}, but {value:.4g} by {other}. Is the image a reduced "
                "copy, or is `.obs['technology']` wrong?",
            )
    if first > _COARSE_UM:
        yield Problem(
            "warning",
            f"The image has {first:.3g} µm per pixel; nuclei are about 8 µm wide. Use the full-resolution scan "
            "(0.2 to 1 µm per pixel) if there is one.",
        )
    if um is None and px:
        yield from _pitch_by_spots(subject, px, first, name)


def known_pitch(subject: Subject, technology: str) -> float | None:
    """Pitch of an array in µm: the one it was read with, or that of the technology, where it has one."""
    for reader in ("read_st", "read_hest"):
        if (read := _section.recorded(subject.table, reader).get("pitch_um")) is not None and np.isfinite(read):
            return float(read)
    array = lattice.known_array(technology)
    return None if array is None else array.pitch_um


def _pitch_by_spots(subject: Subject, px: float, mpp: float, source: str) -> Iterator[Finding]:
    """Compare the pitch in µm with the size of the spots, whatever the technology is called."""
    if subject.spot_px is None or _section.recorded(subject.table, "tile"):
        # Tiles are cut by the scale, so that they cannot contradict it.
        return
    pitch_um, spot_um, squares = px * mpp, subject.spot_px * mpp, "radius" not in subject.spots
    apart = f"Spots of {spot_um:.4g} µm lie {pitch_um:.4g} µm apart by a scale of {mpp:.4g} µm per pixel ({source})"
    if squares:
        if abs(pitch_um - spot_um) > TOLERANCE * spot_um:
            yield Problem(
                "warning",
                f"{apart}, but square bins touch; by their side the image would have {spot_um / px:.4g} µm per pixel. "
                "Is the scale or the size of the bins wrong?",
            )
        return
    grid = _grid(subject)
    like = [one for one in lattice.KNOWN_ARRAYS if grid in (None, one.grid) and one.has_spots(spot_um, TOLERANCE)]
    if fitting := [one for one in like if abs(pitch_um - one.pitch_um) <= TOLERANCE * one.pitch_um]:
        yield Fact("scale", "confirmed by", f"pitch and spots, which are those of {fitting[0].name}")
    elif like:
        array = like[0]
        yield Problem(
            "warning",
            f"{apart}, but those of {array.name}, which are as large, {array.pitch_um:g} µm. By that the image has "
            f"{array.pitch_um / px:.4g} µm per pixel. Measure something of known size; then pass the right `mpp=`, or "
            "`spot_um=` where these are spots of another kind.",
        )
    elif pitch_um < (1 - TOLERANCE) * spot_um:
        yield Problem("warning", f"{apart}, so that they would overlap. Is the scale or the size of the spots wrong?")
    else:
        yield Fact("scale", "not confirmed", f"no known array has spots of {spot_um:.4g} µm every {pitch_um:.4g} µm")


def _pitch_px(subject: Subject) -> float | None:
    try:
        return lattice.pitch(subject.centres)
    except DataError:
        return None


def spots(subject: Subject) -> Iterator[Finding]:
    """Where the spots lie on the image."""
    centres, (width, height) = subject.centres, subject.size
    inside = ((centres >= 0) & (centres < [width, height])).all(1)
    yield Fact("spots", "number", len(centres))
    yield Fact("spots", "centre inside the image", f"{inside.sum()} of {len(centres)} ({inside.mean():.1%})")
    low, high = centres.min(0), centres.max(0)
    yield Fact("spots", "span", f"x {low[0]:.0f} to {high[0]:.0f}, y {low[1]:.0f} to {high[1]:.0f} px")
    covered = float(np.prod(np.clip(np.minimum(high, [width, height]) - np.maximum(low, 0), 0, None)) / width / height)
    yield Fact("spots", "image covered", f"{covered:.1%}")
    if covered < _SMALL_COVERAGE and inside.mean() > 0.5:
        yield Problem(
            "warning",
            f"The spots of {subject.region.name!r} lie within {covered:.2%} of image {subject.image_key!r}: their "
            "coordinates may be those of a reduced copy. Compare the two with `sl.pl.crops(sdata)`.",
        )


def array(subject: Subject) -> Iterator[Finding]:
    """Pitch of the spots and kind of grid."""
    px = _pitch_px(subject)
    if px is None:
        yield Problem("error", f"Spots of {subject.region.name!r} share positions; drop the duplicates.")
        return
    own = _section.mpp_of(subject.element) or subject.options.mpp
    yield Fact("array", "pitch", f"{px:.4g} px" + (f" = {px * own:.4g} µm" if own else ""))
    yield Fact("array", "grid", _grid(subject) or "not clear")
    if (along := _along_array(subject)) is not None and not along:
        yield Problem(
            "warning",
            f"The array of {subject.region.name!r} lies mirrored on the image: x and y of the spots are interchanged "
            "(or rows and columns of the array), or the picture was flipped. Interchange the columns, or take the "
            "original picture.",
        )


def _grid(subject: Subject) -> str | None:
    try:
        return lattice.detect_grid(subject.centres)
    except DataError:
        return None


def _along_array(subject: Subject) -> bool | None:
    """Whether x and y turn into each other as columns and rows of the array do; None where that is not known."""
    obs, rows = subject.table.obs, subject.region.rows
    if not {Keys.ARRAY_ROW, Keys.ARRAY_COL} <= set(obs):
        return None
    places = obs[[Keys.ARRAY_COL, Keys.ARRAY_ROW]].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=float)[rows]
    known = np.isfinite(places).all(axis=1)
    fit = lattice.fit_array(places[known], subject.centres[known], tolerance_um=_OFF_ARRAY)
    if fit is None or np.median(fit.residual_um(places[known], subject.centres[known])) > _OFF_ARRAY:
        return None
    return bool(np.linalg.det(fit.matrix) > 0)


def crops(subject: Subject) -> Iterator[Finding]:
    """What `pp.pair_crops` and `pp.tissue` would say, by calling them on a stand-in."""
    from sealst.pp import pair_crops, tissue

    stored = _section.recorded(subject.table, "crops")
    if subject.region.name in stored and Keys.CROP_OK in subject.table.obs:
        n = int(np.asarray(subject.table.obs[Keys.CROP_OK], dtype=bool)[subject.region.rows].sum())
        yield Fact(
            "crops", "paired", f"{n} of {len(subject.region.rows)}, {stored[subject.region.name]['crop_um']:g} µm"
        )
    if subject.system != subject.options.coordinate_system:
        # Tried with the system that fits, so that further problems show, too.
        yield Problem(
            "error",
            f"Image {subject.image_key!r} and spots {subject.region.name!r} do not share the coordinate system "
            f"{subject.options.coordinate_system!r}; they share {listed(subject.shared_systems)}. Pass "
            f"`coordinate_system={subject.system!r}`, or build the section with `sl.io.from_spatialdata(...)`.",
        )
        if not subject.shared_systems:
            return
    trial = subject.alone()
    options: dict[str, Any] = {"image_key": subject.image_key, "coordinate_system": subject.system}
    options |= {k: getattr(subject.options, k) for k in ("mpp", "pitch_um", "spot_um")}
    with collected_warnings() as caught:
        try:
            pair_crops(trial, **options)
        except SealstError as error:
            yield Problem("error", f"`sl.pp.pair_crops` will refuse: {error}")
            return
    yield from warnings_as_problems(caught)
    usable = int(trial.tables[Keys.TABLE].obs[Keys.CROP_OK].sum())
    yield Fact("crops", "possible (112 µm)", f"{usable} of {len(subject.region.rows)}")
    if usable < 16 and subject.table.n_vars:
        yield Problem("error", f"`sl.tl.finetune` needs at least 16 spots with a crop, {usable} have one.")
    if not usable:
        return
    # What `pp.tissue` would find, by calling it on the stand-in that has crops.
    levels = [level for level in _section.image_levels(subject.element) if not is_computed(level)]
    if levels[-1].size > 3 * _LOADED_PX:
        yield Fact("crops", "on tissue", "not measured: the image has no coarse scale, and all of it would be read")
        return
    with collected_warnings():
        tissue(trial, min_tissue=_MIN_TISSUE)
    shares = trial.tables[Keys.TABLE].obs[Keys.TISSUE_FRACTION].to_numpy()
    on = int((shares >= _MIN_TISSUE).sum())
    yield Fact("crops", f"on tissue (at least {_MIN_TISSUE:.0%})", f"{on} of {len(shares)} ({on / len(shares):.1%})")
    if on < len(shares) / 2:
        yield Problem(
            "warning",
            f"Only {on} of {len(shares)} crops of {subject.region.name!r} lie on tissue: do image and spots belong "
            "together, or is the image shifted, turned or mirrored? Look at `sl.pl.crops(sdata)`; "
            "`sl.pp.tissue(sdata)` sets crops on glass aside.",
        )
    if _along_array(subject) is None and not _section.recorded(subject.table, "tile"):
        yield from _axes(subject, trial, on / len(shares))


def _axes(subject: Subject, trial: SpatialData, on: float) -> Iterator[Finding]:
    """Whether tissue lies under the spots as they are, or with x and y interchanged; without places on an array."""
    from sealst.pp import pair_crops, tissue

    swapped = subject.alone(subject.centres[:, ::-1])
    try:
        with collected_warnings():
            pair_crops(swapped, image_key=subject.image_key, coordinate_system=subject.system, mpp=_mpp_of(trial))
            tissue_key = Keys.tissue(subject.region.section)
            swapped.labels[tissue_key] = trial.labels[tissue_key]
            tissue(swapped, min_tissue=_MIN_TISSUE, labels_key=tissue_key)
        shares = swapped.tables[Keys.TABLE].obs[Keys.TISSUE_FRACTION].to_numpy()
        other = float((shares >= _MIN_TISSUE).mean())
    except SealstError:
        # They would not lie on the image.
        other = 0.0
    if other - on >= _BETTER:
        yield Problem(
            "warning",
            f"{on:.0%} of the spots of {subject.region.name!r} lie on tissue, and {other:.0%} with x and y interchanged"
            ": are the columns of the coordinates swapped? `xy` is (x, y), from left to right and from top to bottom.",
        )
    elif on - other >= _BETTER:
        yield Fact("spots", "x and y", f"as tissue has it ({on:.0%} on it, {other:.0%} if they were interchanged)")
    else:
        grid, turned = _grid(subject), 0.0
        if grid == "hex":
            turned = abs(lattice.turn(subject.centres, grid))
        yield Fact("spots", "x and y", "not decided: as much tissue lies under the spots if they were interchanged")
        if turned > 30 - _TURNED:
            yield Problem(
                "warning",
                f"Rows of the hexagonal array {subject.region.name!r} run along y, as after x and y were interchanged "
                "or the picture was turned by 90 degrees; tissue does not tell which. Look at `sl.pl.crops(sdata)`.",
            )


def _mpp_of(trial: SpatialData) -> float:
    (crops,) = _section.recorded(trial.tables[Keys.TABLE], "crops").values()
    return float(crops["mpp"])


RULES = (image, scale, spots, array, crops)
