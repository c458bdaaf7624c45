"""Spots of a procedural section: where they lie, and what lies in them. Arrays only, everything in µm."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from sealst.datasets._synthetic.histology import CLASSES, KINDS, Tissue


def lattice(size_um: float, pitch_um: float, margin_um: float, *, hexagonal: bool) -> tuple[np.ndarray, np.ndarray]:
    """Centres (x, y) in µm and array positions (row, col) of all spots of a square array.

    Hexagonal arrays count columns in half pitches, as Visium does: row + col is even everywhere.
    """
    across = pitch_um / 2 if hexagonal else pitch_um
    down = pitch_um * np.sqrt(0.75) if hexagonal else pitch_um
    usable = size_um - 2 * margin_um
    n_rows, n_cols = (int(usable / d + 1e-9) + 1 if usable >= 0 else 0 for d in (down, across))
    row, col = (a.ravel() for a in np.meshgrid(np.arange(n_rows), np.arange(n_cols), indexing="ij"))
    if hexagonal:
        used = (row + col) % 2 == 0
        row, col = row[used], col[used]
    # Centre the array in the picture.
    offset = (size_um - np.array([(n_cols - 1) * across, (n_rows - 1) * down])) / 2
    return np.column_stack([col * across, row * down]) + offset, np.column_stack([row, col])


def classes_in_spots(tissue: Tissue, xy: np.ndarray, spot_um: float) -> np.ndarray:
    """Share of each spot's area by tissue class, float64 (n, classes); rows sum to 1."""
    reach = int(np.ceil(spot_um / 2 / tissue.step))
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = np.hypot(dx, dy) * tissue.step <= spot_um / 2
    offset = np.column_stack([dx[disc], dy[disc]]) * tissue.step
    labels = np.stack([tissue.at(tissue.labels, xy + shift) for shift in offset], axis=1)
    return np.stack([(labels == k).mean(1) for k in range(len(CLASSES))], axis=1)


def cells_in_spots(tissue: Tissue, xy: np.ndarray, spot_um: float) -> np.ndarray:
    """Drawn cells per mm² of each spot by kind, float64 (n, kinds)."""
    inside = cKDTree(tissue.nuclei.xy).query_ball_point(xy, spot_um / 2)
    kinds = [np.bincount(tissue.nuclei.kind[i], minlength=len(KINDS)) for i in inside]
    return np.array(kinds) / (np.pi * (spot_um / 2000) ** 2)
