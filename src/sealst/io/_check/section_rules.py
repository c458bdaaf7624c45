"""What `sealst.io.check` looks for around the image, one function per subject."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from spatialdata import SpatialData
from spatialdata.models import TableModel
from spatialdata.transformations import get_transformation

from sealst import _section
from sealst._core.space import lattice
from sealst._core.space.geometry import TOLERANCE, similarity_scale
from sealst._errors import DataError, MissingKeyError, SealstError
from sealst._keys import Keys
from sealst._section.pyramid import is_computed
from sealst._validate import listed
from sealst.io._check.subject import Fact, Problem, Subject, collected_warnings, warnings_as_problems

#: pitch of arrays in µm, by a word in the name of the technology
PITCHES = {"visium hd": None, "visium": 100.0, "spatial transcriptomics": 200.0}
_REDUCED = ("hires", "lowres", "downscaled", "thumbnail")
#: µm per pixel above which a nucleus is hardly a pixel wide
_COARSE_UM = 2.0
#: share of the image within the frame of the spots below which the two hardly belong together
_SMALL_COVERAGE = 0.02
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
    if (um := known_pitch(technology)) is not None and px:
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
            f"If that is right, pass `pitch_um={known_pitch(technology):g}` to `sl.pp.pair_crops`.",
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


def known_pitch(technology: str) -> float | None:
    """Pitch of an array in µm, where the technology has one."""
    return next((um for word, um in PITCHES.items() if word in technology.lower()), None)


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
    try:
        yield Fact("array", "grid", lattice.detect_grid(subject.centres))
    except DataError:
        yield Fact("array", "grid", "not clear")


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
    if usable < 16:
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


RULES = (image, scale, spots, array, crops)
