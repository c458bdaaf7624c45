"""Whether a picture shows H&E, red, green and blue in transmitted light, or something else of the same shape."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sealst._errors import DataError
from sealst._logging import warn
from sealst._validate import listed

_COLOUR = re.compile(r"(r|g|b|a|red|green|blue|alpha)[\W_\d]*(channel)?", re.IGNORECASE)
#: names that programs give to channels without a name, and those of a whole H&E
_GENERIC = re.compile(
    r"(channel|chan|ch|c|band|sample|component|image|page|slice|plane)?[\W_]*[\d\W_]*"
    r"|c:\d+/\d+.*"
    r"|(tl|transmitted)?[\W_]*(bright[\W_]?field|rgb|h[\W_]?&?[\W_]?e)[\W_\d]*",
    re.IGNORECASE,
)
#: where nothing absorbs the light all colours are bright: they are at least this on the lightest pixels
_LIGHT, _LIGHTEST_PERCENT = 128, 98
#: pixels that are below this in every colour are dark; glass is at least the second in every colour, and at least this
#: share of what is not dark is glass
_DARK, _GLASS, _GLASS_SHARE = 64, 200, 0.02
#: pixels of a level that are read at once, and windows along each side of a larger one
_READ_PX, _WINDOWS, _WINDOW_PX = 4_000_000, 4, 256


def check_colours(names: Iterable[Any], *, what: str) -> bool:
    """Refuse channels that are called something else than red, green and blue.

    Parameters
    ----------
    names
        Names of the channels, as they follow each other.
    what
        What they belong to, for messages.

    Returns
    -------
    Whether the names say that the channels are red, green and blue; False where they say nothing (numbers, no names).

    Raises
    ------
    DataError
        When they are names of stains, or colours in another order.
    """
    found = [str(name).strip() for name in names]
    if any(not (_COLOUR.fullmatch(name) or _GENERIC.fullmatch(name)) for name in found):
        raise DataError(
            f"The channels of {what} are called {listed(found)}, which are no colours of an H&E, as in fluorescence. "
            "Give the H&E of the section; if this is one, name its channels 'r', 'g', 'b' or save it as "
            "RGB (`tifffile.imwrite(path, image, photometric='rgb')`)."
        )
    colours = [name[0].lower() if _COLOUR.fullmatch(name) else "" for name in found[:3]]
    if set(colours) == set("rgb") and colours != list("rgb"):
        raise DataError(
            f"The channels of {what} are {listed(found)}, not red, green, blue. Write it anew with the channels in "
            "that order (`image.sel(c=['r', 'g', 'b'])`)."
        )
    return colours == list("rgb")


def is_dark(levels: Sequence[Any]) -> bool:
    """Whether a picture (c, y, x) has no light background, as fluorescence; the coarsest of its levels is looked at.

    Glass, gaps and lumina let all colours through, so that the lightest pixels of an H&E are near white also where
    tissue fills the picture or black surrounds it. Stains that glow are bright together on few pixels; where they are
    on many, most of the picture is dark and nothing is as light as glass.
    """
    level = levels[-1]
    height, width = level.shape[-2:]
    parts = [level]
    if height * width > _READ_PX:
        at = [np.linspace(0, n - _WINDOW_PX, _WINDOWS).astype(int) for n in (height, width)]
        parts = [level[:, y : y + _WINDOW_PX, x : x + _WINDOW_PX] for y in at[0] for x in at[1]]
    pixels = np.concatenate([np.asarray(part)[:3].reshape(3, -1) for part in parts], axis=1)
    darkest, lit = pixels.min(axis=0), pixels.max(axis=0) >= _DARK
    if np.percentile(darkest, _LIGHTEST_PERCENT) < _LIGHT:
        return True
    return bool(lit.mean() < 0.5 and (darkest[lit] >= _GLASS).mean() < _GLASS_SHARE)


def warn_if_dark(library: Any, section: str) -> None:
    """Warn where the small picture that squidpy shows (see `squidpy_library`) has no light background."""
    if is_dark([np.moveaxis(library["images"]["hires"], 2, 0)]):
        warn(f"{section}: the image {DARK}")


#: what is said of a picture that is stored as red, green and blue but does not look like an H&E
DARK = (
    "has no light background: glass lets all colours through, and nothing here does, as in fluorescence. Give the H&E "
    "of the section; encoders see nothing in other stains."
)
