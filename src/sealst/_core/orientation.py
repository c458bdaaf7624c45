"""Whether two pictures show the same, and which way round."""

from __future__ import annotations

import numpy as np

#: what was done to the first picture to get the second
TURNS = {
    "as it is": lambda x: x,
    "mirrored left to right": np.fliplr,
    "upside down": np.flipud,
    "turned by 180 degrees": lambda x: x[::-1, ::-1],
    "turned by 90 degrees": lambda x: np.rot90(x),
    "turned by 270 degrees": lambda x: np.rot90(x, 3),
    "transposed": lambda x: x.T,
    "transposed and turned by 180 degrees": lambda x: x[::-1, ::-1].T,
}


def likeness(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Correlation of a square grey picture with another one, in each of the eight ways it can be laid.

    Parameters
    ----------
    first, second
        Grey pictures of the same side, (n, n).

    Returns
    -------
    Pearson correlation by name of the turn; 0 where a picture is of one grey.
    """
    return {name: _correlation(turn(first), second) for name, turn in TURNS.items()}


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    x, y = (np.asarray(v, dtype=float).ravel() - np.mean(v) for v in (a, b))
    size = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / size) if size > 0 else 0.0
