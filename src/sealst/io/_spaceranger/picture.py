"""Which picture the coordinates of a Space Ranger folder belong to, and what its pixels measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from sealst._core.space.geometry import TOLERANCE, agreed, likeness
from sealst._core.space.lattice import ArrayFit, fit_array
from sealst._errors import DataError, ScaleError
from sealst._files import expanded, visible
from sealst._keys import Keys
from sealst._logging import warn
from sealst._section.pyramid import SlideImage
from sealst._validate import check_positive, listed
from sealst.io._images.files import open_image, picture_size, read_picture
from sealst.io._spaceranger.folders import Outs
from sealst.io._spaceranger.positions import Run, pixels

#: Space Ranger's small pictures of the same field of view, the larger first
SMALL = ("hires", "lowres")
_MAX_OUTSIDE = 0.1
# The small pictures' sizes are whole pixels, so the full size follows from them only roughly.
_SIZE_TOLERANCE = 0.01
_SLIDES = (".tif", ".tiff", ".btf", ".jpg", ".jpeg", ".ndpi", ".svs", ".png")


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture, and the factor from full-resolution pixels to its own."""

    image: np.ndarray | SlideImage
    scale: float
    #: ``"full resolution"``, ``"hires"`` or ``"lowres"``
    kind: str
    path: str
    #: µm per pixel as the file states it
    stated: float | None = None
    stated_source: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        height, width = self.image.shape[:2]
        return int(width), int(height)

    @property
    def provenance(self) -> dict[str, str | float]:
        """Plain facts for ``.uns``."""
        return {"image": self.kind, "image_path": self.path, "coordinate_scale": float(self.scale)}


def choose_picture(
    outs: Outs,
    image: str | PathLike[str] | np.ndarray | SlideImage | None,
    *,
    factors: Mapping[str, float],
    coordinate_scale: float,
    section: str,
) -> Picture:
    """The picture given, after checking that it is the one of the coordinates; else the largest small picture."""
    check_positive("coordinate_scale", coordinate_scale)
    if image is None:
        if coordinate_scale != 1:
            raise DataError("`coordinate_scale` belongs to a picture given as `image`; leave it out without one.")
        return _small_picture(outs, factors, section)
    path = "" if isinstance(image, np.ndarray | SlideImage) else str(expanded(image))
    if path and not Path(path).is_file():
        raise DataError(f"`image`: no file at {path!r} (looked for {str(Path(path).absolute())!r}).")
    if "cytassist_image" in Path(path).name:
        raise DataError(
            f"`image` is {Path(path).name!r}, CytAssist's own picture without haematoxylin. Pass the H&E from the "
            "microscope, the `--image` of Space Ranger."
        )
    opened = open_image(path) if path else image
    if isinstance(opened, np.ndarray) and (opened.ndim != 3 or opened.shape[2] != 3):
        raise DataError(f"`image` must be uint8 (height, width, 3), found {opened.dtype} {opened.shape}.")
    picture = Picture(opened, coordinate_scale, "full resolution", "")  # type: ignore[arg-type]
    if isinstance(opened, SlideImage):
        source = opened.mpp_source or "the image"
        picture = Picture(opened, coordinate_scale, picture.kind, opened.path or path, opened.mpp, source)
    small = {kind: lies for kind in SMALL if (lies := outs.find(f"tissue_{kind}_image.png"))}
    check_size(picture.size, {kind: picture_size(lies) for kind, lies in small.items()}, factors, coordinate_scale)
    if small:
        kind, first = next(iter(small.items()))
        check_content(picture.image, lambda: read_picture(first), kind=kind, section=section)
    return picture


#: side of the pictures that are compared, and pixels of a level that may be read for it
_SIDE, _SMALL_ENOUGH = 64, 3 * 16_000_000
#: grey levels below which a picture has no content to compare
_FLAT = 2.0
#: correlations: of a turn that is believed, its lead over the picture as it is, and of pictures that are not alike
_SURE, _CLEARLY, _UNLIKE = 0.5, 0.2, 0.3


def _small_picture(outs: Outs, factors: Mapping[str, float], section: str) -> Picture:
    for kind in SMALL:
        path, factor = outs.find(f"tissue_{kind}_image.png"), factors.get(f"tissue_{kind}_scalef")
        if path is None or factor is None:
            continue
        width, height = picture_size(path)
        cytassist = outs.find("cytassist_image.tiff") or outs.find("cytassist_image.tif")
        if cytassist and _about(picture_size(cytassist), (width / factor, height / factor), 2 / factor):
            raise DataError(
                f"Space Ranger ran on CytAssist's picture alone ({cytassist.name}), so its small pictures are no H&E "
                "either. Run it with the microscope's picture (`--image`) and pass that as `image=`."
            )
        return Picture(read_picture(path), factor, kind, str(path))
    slides = [n for n in visible(outs.folder) if n.lower().endswith(_SLIDES)]
    raise DataError(
        f"{section}: no picture. `image` was not given, and {str(outs.folder)!r} has no 'tissue_hires_image.png' or "
        "'tissue_lowres_image.png' with its factor in 'scalefactors_json.json' (factors found: "
        f"{listed(factors)}). Pass `image=`, the picture given to Space Ranger"
        + (f"; the folder holds {listed(slides)}." if slides else ".")
    )


def check_size(
    size: tuple[int, int], small: Mapping[str, tuple[int, int]], factors: Mapping[str, float], coordinate_scale: float
) -> None:
    """Refuse a picture that is not the one Space Ranger saw, as far as the sizes of its small pictures tell.

    All sizes are (width, height); `factors` are those of ``scalefactors_json.json``.
    """
    known = [(k, factors[f"tissue_{k}_scalef"]) for k in small if f"tissue_{k}_scalef" in factors]
    full = None
    if known:
        kind, factor = known[0]
        full = (small[kind][0] / factor, small[kind][1] / factor)
        slack = 2 / factor * coordinate_scale
        if _about(size, (full[0] * coordinate_scale, full[1] * coordinate_scale), slack):
            return
    for kind, other in small.items():
        if size == other and (full is None or not _about(size, full, 2)):
            raise ScaleError(
                f"`image` has the size of Space Ranger's {kind} picture, {_text(size)} pixels"
                + (f", but the coordinates count pixels of one of about {_text(full)}" if full else "")
                + ". Pass the picture given to Space Ranger, or leave out `image` to use the small one with its scale."
            )
    if full is None:
        return
    expected = (
        f"`image` is {_text(size)} pixels (width x height), but the coordinates belong to one of about {_text(full)}"
    )
    if coordinate_scale != 1:
        expected += f", times `coordinate_scale` {coordinate_scale:.4g}"
    factor = size[0] / full[0]
    if _about(size, (full[0] * factor, full[1] * factor), 2 / known[0][1]):
        raise ScaleError(
            f"{expected}: it was resized. Pass the original given to Space Ranger, or `coordinate_scale={factor:.4g}`."
        )
    if _about(size, (full[1] * coordinate_scale, full[0] * coordinate_scale), slack):
        raise ScaleError(f"{expected}: it was turned by 90 degrees. Pass the original given to Space Ranger.")
    raise ScaleError(f"{expected}: it is another picture, or was cut. Pass the original given to Space Ranger.")


def check_content(
    image: np.ndarray | SlideImage, read_small: Callable[[], np.ndarray], *, kind: str, section: str
) -> None:
    """Compare a picture with Space Ranger's small one: refuse it turned, warn where it shows something else."""
    own = _grey(image)
    if own is None:
        return
    small = _grey(read_small())
    if small is None or min(own.std(), small.std()) < _FLAT:
        return
    found = likeness(small, own)
    same, best = found["as it is"], max(found, key=lambda turn: found[turn])
    if found[best] > max(_SURE, same + _CLEARLY):
        raise DataError(
            f"{section}: `image` is {best}, compared with Space Ranger's {kind} picture (correlation "
            f"{found[best]:.2f}, and {same:.2f} as it is). Pass the original given to Space Ranger."
        )
    if same < _UNLIKE:
        warn(
            f"{section}: `image` hardly resembles Space Ranger's {kind} picture (correlation {same:.2f}). Is it the "
            "picture of another section?"
        )


def _grey(image: np.ndarray | SlideImage) -> np.ndarray | None:
    """Small square grey picture; None where all of a large image would have to be read for it."""
    from PIL import Image

    if isinstance(image, SlideImage):
        level = image.readable[-1]
        if level.size > _SMALL_ENOUGH:
            return None
        pixels = np.moveaxis(np.asarray(level), 0, 2)
    else:
        step = max(1, min(image.shape[:2]) // 1000)
        pixels = image[::step, ::step]
    shrunk = Image.fromarray(np.ascontiguousarray(pixels)).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(shrunk, dtype=float)


def _about(size: tuple[float, float], other: tuple[float, float], slack: float) -> bool:
    return all(abs(a - b) <= _SIZE_TOLERANCE * b + slack for a, b in zip(size, other, strict=True))


def _text(size: tuple[float, float]) -> str:
    return f"{size[0]:.0f} x {size[1]:.0f}"


def check_picture(picture: Picture, xy: np.ndarray, *, mpp: float, section: str, what: str = "spots") -> None:
    """Refuse coordinates that the picture does not hold (a few may lie beyond its edge); warn of a small picture."""
    width, height = picture.size
    outside = ((xy < 0) | (xy > [width, height])).any(1)
    if outside.mean() > _MAX_OUTSIDE:
        low, high = xy.min(0), xy.max(0)
        crossed = (
            "" if (high > [height, width]).any() or (low < 0).any() else " With x and y interchanged all lie inside."
        )
        raise ScaleError(
            f"{section}: {outside.sum()} of {len(xy)} {what} lie outside the image: they span x {low[0]:.0f} to "
            f"{high[0]:.0f} and y {low[1]:.0f} to {high[1]:.0f}, the image is {width} x {height} pixels (width x "
            f"height).{crossed} The coordinates count pixels of the full-resolution picture (that given to Space "
            "Ranger); pass that one, or `coordinate_scale=` (width of `image` divided by the original's) where it was "
            "resized."
        )
    if picture.kind in SMALL:
        warn(
            f"{section}: no full-resolution image was given, so Space Ranger's {picture.kind} picture is used, with "
            f"{mpp:.3g} µm per pixel. Encoders of H&E see little in it; pass `image=`, the picture given to Space "
            "Ranger."
        )


def fit_scale(
    run: Run,
    picture: Picture,
    step_um: float | np.ndarray,
    *,
    tolerance_um: float,
    mpp: float | None,
    nominal: Mapping[str, float],
    section: str,
) -> tuple[ArrayFit | None, float, str]:
    """Fit of the array to the picture, µm per pixel from all that is known of it, and where that comes from.

    The whole array is fitted, not only the spots that are kept; `step_um` lies between its columns and its rows. Spots
    where the array has none are refused. `nominal` holds statements that confirm or contradict and are never the
    source, several readings of one number being allowed: those named alike up to ``" ("`` are alternatives.
    """
    known = run.places[np.isfinite(pixels(run.places)).all(axis=1)]
    um = known[[Keys.ARRAY_COL, Keys.ARRAY_ROW]].to_numpy() * step_um
    px = pixels(known) * picture.scale
    fit = fit_array(um, px, tolerance_um=tolerance_um)
    sources: dict[str, float] = {}
    if mpp is not None:
        check_positive("mpp", mpp)
        sources["`mpp`"] = float(mpp)
    if fit is not None:
        if fit.anisotropy > TOLERANCE:
            raise ScaleError(
                f"{section}: the array is stretched unevenly by the positions, {fit.anisotropy:.0%} more in one "
                f"direction than in another; at most {TOLERANCE:.0%} is accepted. Are columns of the "
                "positions interchanged, or the pixels of the image not square?"
            )
        off = fit.residual_um(um, px) > tolerance_um
        if off.any():
            raise DataError(
                f"{section}: {off.sum()} of {len(um)} positions lie more than {tolerance_um:g} µm from their place on "
                f"the array, e.g. {listed(known.index[off][:3], 3)}. Array and pixel coordinates of the positions "
                "belong to different spots there; take the table as Space Ranger wrote it."
            )
        if np.linalg.det(fit.matrix) < 0:
            warn(
                f"{section}: the array lies mirrored on the picture. Unless the picture was flipped before Space "
                "Ranger saw it, the columns of pixel rows and pixel columns are interchanged in the table of positions."
            )
        sources["the pitch of the array"] = fit.mpp
    if picture.stated is not None:
        sources[f"the image file ({picture.stated_source})"] = picture.stated
    hint = "The spots lie in one line, so the array gives no scale: pass `mpp=`, in µm per pixel of the image."
    value, source = agreed(sources, what=f"section {section!r}", hint=hint)
    for stem in {name.split(" (")[0] for name in nominal}:
        readings = {n: v for n, v in nominal.items() if n.split(" (")[0] == stem}
        closest = min(readings, key=lambda n: abs(np.log(readings[n] / value)))
        agreed({source: value, closest: readings[closest]}, what=f"section {section!r}")
    return fit, value, source.strip("`")
