"""Physical scale from several statements of it, which must agree."""

from __future__ import annotations

from collections.abc import Mapping

from sealst._errors import ScaleError

#: largest relative difference between two statements of the physical scale
TOLERANCE = 0.05


def agreed(sources: Mapping[str, float], *, what: str, hint: str = "") -> tuple[float, str]:
    """Value and name of the first source, after checking that no other contradicts it.

    Parameters
    ----------
    sources
        µm per pixel by where it comes from, the most trusted first.
    what
        What the scale belongs to, for messages: ``"image 'C2_he'"``.
    hint
        What to do where there is no source.

    Raises
    ------
    ScaleError
        When there is no source, or two differ by more than 5 %.
    """
    if not sources:
        raise ScaleError(f"The physical scale of {what} is unknown. {hint}".rstrip())
    names = list(sources)
    for i, name in enumerate(names):
        for other in names[i + 1 :]:
            value, second = sources[name], sources[other]
            # Not `>`, which a NaN would pass.
            if not abs(value - second) <= TOLERANCE * max(value, second):
                raise ScaleError(
                    f"Contradictory scale for {what}: {value:.4g} µm per pixel by {name}, {second:.4g} by {other}. Is "
                    "the image a downsampled copy ('hires') of the one that the coordinates belong to?"
                )
    return sources[names[0]], names[0]
