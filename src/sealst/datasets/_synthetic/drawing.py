"""Drawing of a procedural section: cells stamped into maps of two dyes, dyes to light by Beer-Lambert. Arrays only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from sealst.datasets._synthetic.histology import KINDS, Tissue, resize, smooth_field

#: background of every class between its nuclei: hematoxylin, eosin, strength of the fibres
_BASE = np.array(
    [
        [0.20, 0.26, 0.10],
        [0.17, 0.42, 0.10],
        [0.03, 0.42, 1.00],
        [0.20, 0.22, 0.15],
        [0.10, 0.34, 0.60],
        [0.04, 0.42, 0.00],
        [0.06, 0.55, 0.45],
        [0.00, 0.00, 0.00],
    ],
    dtype=np.float32,
)


@dataclass(frozen=True)
class Stain:
    """Absorption of red, green and blue by the two dyes (natural optical density at concentration 1) and the lamp."""

    hematoxylin: tuple[float, float, float] = (0.80, 1.02, 0.52)
    eosin: tuple[float, float, float] = (0.11, 0.86, 0.40)
    white: tuple[float, float, float] = (244.0, 243.0, 245.0)

    @classmethod
    def vary(cls, rng: np.random.Generator, amount: float) -> Stain:
        """Draw the stain of a laboratory: both dyes change in hue and in strength by `amount` (1 is usual)."""
        base = cls()
        strength = np.exp(amount * 0.16 * rng.standard_normal((2, 1)))
        hue = np.exp(amount * 0.07 * rng.standard_normal((2, 3)))
        dyes = np.array([base.hematoxylin, base.eosin]) * strength * hue
        lamp = np.clip(np.array(base.white) + amount * 1.5 * rng.standard_normal(3), 225, 252)
        (h_r, h_g, h_b), (e_r, e_g, e_b), (w_r, w_g, w_b) = (row.tolist() for row in (*dyes, lamp))
        return cls((h_r, h_g, h_b), (e_r, e_g, e_b), (w_r, w_g, w_b))


@dataclass(frozen=True)
class _Look:
    """How cells of a kind look: lengths in µm, dyes as concentrations."""

    length: float
    width: float
    #: relative spread of size, and depth of the dents in the outline
    spread: float
    dents: float
    #: hematoxylin of the nucleus, its clumps, its rim, nucleoli per nucleus
    dark: float
    clumps: float
    rim: float
    nucleoli: float
    #: radius of the cytoplasm and its hematoxylin and eosin
    cell: float
    cell_h: float
    cell_e: float
    #: distance of the nucleus from the middle of the cell
    offset: float = 0.0


_LOOKS = {
    "tumour": _Look(9.6, 7.4, 0.17, 0.09, 0.74, 0.22, 0.20, 1.3, 6.8, 0.27, 0.46),
    "gland": _Look(8.2, 5.6, 0.07, 0.03, 0.98, 0.16, 0.10, 0.2, 0.0, 0.0, 0.0),
    "fibroblast": _Look(12.0, 2.7, 0.18, 0.08, 1.00, 0.10, 0.05, 0.0, 0.0, 0.0, 0.0),
    "lymphocyte": _Look(6.3, 5.9, 0.07, 0.03, 1.28, 0.20, 0.05, 0.0, 3.9, 0.24, 0.20),
    "plasma": _Look(6.4, 5.8, 0.06, 0.03, 1.15, 0.34, 0.08, 0.0, 6.0, 0.44, 0.46, 1.6),
    "mitosis": _Look(7.6, 4.0, 0.15, 0.20, 1.80, 0.12, 0.00, 0.0, 7.4, 0.12, 0.34),
    "erythrocyte": _Look(0.0, 0.0, 0.08, 0.05, 0.0, 0.0, 0.0, 0.0, 3.3, 0.0, 1.05),
}
_TURNS, _VARIANTS = 12, 5
_HALF_UM = 10.5


def render(tissue: Tissue, rng: np.random.Generator, stain: Stain, *, mpp: float) -> np.ndarray:
    """Draw a section at `mpp` µm per pixel, uint8 (px, px, 3) with px = round(size in µm / mpp)."""
    n_px = int(round(tissue.size_um / mpp))
    hematoxylin, eosin = _ground(tissue, rng, n_px)
    # Whole pixels make the side of one a little different from `mpp`.
    side = tissue.size_um / n_px
    stamps = [
        [_stamp(rng, _LOOKS[kind], int(turn), mpp=side) for turn in np.repeat(np.arange(_TURNS), _VARIANTS)]
        for kind in KINDS
    ]
    nuclei = tissue.nuclei
    half = stamps[0][0].shape[1] // 2
    corner = np.floor(nuclei.xy / side).astype(int) - half
    turn = np.round(nuclei.angle / np.pi * _TURNS).astype(int) % _TURNS
    pick = turn * _VARIANTS + rng.integers(0, _VARIANTS, len(turn))
    inside = ((corner >= 0) & (corner + 2 * half + 1 <= n_px)).all(1)
    for i in np.flatnonzero(inside):
        x, y = corner[i]
        for dye, stamp in zip((hematoxylin, eosin), stamps[nuclei.kind[i]][pick[i]], strict=True):
            window = dye[y : y + stamp.shape[0], x : x + stamp.shape[1]]
            np.maximum(window, stamp, out=window)
    for dye in (hematoxylin, eosin):
        ndimage.gaussian_filter(dye, 0.30 / mpp, output=dye, truncate=3)
    # Beer-Lambert, then the camera's noise; in strips, so that memory stays small.
    picture = np.empty((n_px, n_px, 3), dtype=np.uint8)
    dye_h, dye_e, white = (np.array(v, dtype=np.float32) for v in (stain.hematoxylin, stain.eosin, stain.white))
    for start in range(0, n_px, 256):
        rows = slice(start, start + 256)
        light = hematoxylin[rows, :, None] * -dye_h
        light -= eosin[rows, :, None] * dye_e
        np.exp(light, out=light)
        light *= white
        light += 1.6 * rng.standard_normal(light.shape, dtype=np.float32)
        picture[rows] = np.clip(light + 0.5, 0, 255)
    return picture


def _ground(tissue: Tissue, rng: np.random.Generator, n_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Everything but the cells: dye of each class, fibres, clefts, glass."""
    base = [ndimage.gaussian_filter(channel[tissue.labels], 0.7) for channel in _BASE.T]
    uneven = 1 + 0.07 * smooth_field(rng, len(tissue.labels), 150 / tissue.step)
    hematoxylin, eosin, fibrous = (resize(channel, n_px) for channel in (base[0], base[1] * uneven, base[2]))
    along, across = (resize(c, n_px) for c in tissue.flow)
    fibres = []
    for length, width in ((11.0, 2.6), (5.0, 0.8)):
        # Long wrapped noise, looked up in the fibres' own coordinates.
        n_along, n_across = 512, 1024
        noise = rng.standard_normal((n_along, n_across))
        tile = ndimage.gaussian_filter(noise, (4.0, 2.0), mode="wrap").astype(np.float32)
        tile /= tile.std()
        row = (along * np.float32(4.0 / length)).astype(np.int32) & (n_along - 1)
        col = (across * np.float32(2.0 / width)).astype(np.int32) & (n_across - 1)
        fibres.append(tile[row, col])
    bundles, fibrils = fibres
    solid = resize(tissue.solid, n_px)
    # Collagen tears between its bundles when the section shrinks.
    solid -= 9.0 * fibrous * np.maximum(-1.25 - bundles, 0)
    alpha = np.clip(solid / 1.2 + 0.5, 0, 1)
    eosin *= np.maximum(1 + fibrous * (0.26 * bundles + 0.15 * fibrils), 0.1)
    noise = rng.standard_normal((512, 512))
    tile = sum(ndimage.gaussian_filter(noise, s, mode="wrap") * s for s in (0.8, 2.0, 4.0))
    repeats = -(-n_px // 512)
    grain = np.tile((tile / np.std(tile)).astype(np.float32), (repeats, repeats))[:n_px, :n_px]
    eosin *= alpha * (1 + 0.10 * grain)
    hematoxylin *= alpha * (1 + 0.22 * grain)
    return hematoxylin, eosin


def _stamp(rng: np.random.Generator, look: _Look, turn: int, *, mpp: float) -> np.ndarray:
    """One cell, float32 (2, side, side): concentration of hematoxylin and of eosin."""
    half = int(np.ceil(_HALF_UM / mpp))
    y, x = np.mgrid[-half : half + 1, -half : half + 1] * mpp
    size = np.exp(look.spread * rng.standard_normal())
    hematoxylin, eosin = np.zeros_like(x), np.zeros_like(x)
    if look.cell:
        radius = _polar((x, y), rng, 0.10)
        body = np.clip((look.cell * size - radius) / 1.3 + 0.5, 0, 1) * rng.uniform(0.85, 1.15)
        hematoxylin, eosin = look.cell_h * body, look.cell_e * body
    if look.length:
        side = rng.uniform(0, 2 * np.pi)
        x, y = x - look.offset * np.cos(side), y - look.offset * np.sin(side)
        angle = turn * np.pi / _TURNS
        u = (x * np.cos(angle) + y * np.sin(angle)) / (look.length * size / 2)
        stretch = np.exp(0.5 * look.spread * rng.standard_normal())
        v = (y * np.cos(angle) - x * np.sin(angle)) / (look.width * size * stretch / 2)
        depth = (1 - _polar((u, v), rng, look.dents)) * min(look.length, look.width) * size / 2
        alpha = np.clip(depth / 0.7 + 0.5, 0, 1)
        chromatin = ndimage.gaussian_filter(rng.standard_normal(u.shape), 0.55 / mpp)
        chromatin /= max(float(chromatin.std()), 1e-6)
        value = 1 + look.clumps * chromatin + look.rim * (2 * np.exp(-np.square((depth - 0.4) / 0.5)) - 0.5)
        for _ in range(rng.poisson(look.nucleoli)):
            a, b = rng.uniform(-0.35, 0.35, 2)
            spot = np.hypot((u - a) * look.length, (v - b) * look.width) * size / 2
            value += 0.65 * np.exp(-np.square(spot / 0.75))
        nucleus = look.dark * rng.uniform(0.82, 1.18) * np.maximum(value, 0.25) * alpha
        np.maximum(hematoxylin, nucleus, out=hematoxylin)
    return np.stack([hematoxylin, eosin]).astype(np.float32)


def _polar(xy: tuple[np.ndarray, np.ndarray], rng: np.random.Generator, dents: float) -> np.ndarray:
    """Distance from the centre, wavy by angle, so that its level lines are dented discs."""
    theta = np.arctan2(xy[1], xy[0])
    wave = sum(rng.normal(0, dents / (k - 1)) * np.cos(k * theta + rng.uniform(0, 6.3)) for k in (2, 3, 4))
    return np.hypot(*xy) * (1 + wave)
