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
    name, first = next(iter(sources.items()))
    for other, value in sources.items():
        if abs(value - first) > TOLERANCE * first:
            raise ScaleError(
                f"Contradictory scale for {what}: {first:.4g} µm per pixel by {name}, {value:.4g} by {other}. Is the "
                "image a downsampled copy ('hires') of the one that the coordinates belong to?"
            )
    return first, name
