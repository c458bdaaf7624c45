"""Layout of a procedural section: tissue classes, glass, fibres and cells. Arrays only, everything in µm.

The layout lives on a square grid of about 2 µm; `drawing.render` draws it at any µm per pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.spatial import cKDTree

CLASSES = ("tumour", "gland", "stroma", "lymphoid", "plasma", "adipose", "vessel", "background")
KINDS = ("tumour", "gland", "fibroblast", "lymphocyte", "plasma", "mitosis", "erythrocyte")
TUMOUR, GLAND, STROMA, LYMPHOID, PLASMA, ADIPOSE, VESSEL, BACKGROUND = range(len(CLASSES))

_STEP_UM = 2.0
_NEAR_UM = 8.0


@dataclass(frozen=True, eq=False)
class Nuclei:
    """Drawn cells: centre (x, y) in µm, index into `KINDS`, angle of the long axis in radians."""

    xy: np.ndarray
    kind: np.ndarray
    angle: np.ndarray


@dataclass(frozen=True, eq=False)
class Tissue:
    """Layout of a section on a square grid of `step` µm."""

    step: float
    #: index into `CLASSES`
    labels: np.ndarray
    #: signed distance to glass (background, lumens, vacuoles) in µm; negative is glass
    solid: np.ndarray
    #: density of the tumour cells, 0 to 1
    grade: np.ndarray
    #: coordinates along and across the fibres in µm, (2, n, n)
    flow: np.ndarray
    nuclei: Nuclei

    @property
    def size_um(self) -> float:
        """Length of the section's side in µm."""
        return self.step * len(self.labels)

    def at(self, field: np.ndarray, xy: np.ndarray) -> np.ndarray:
        """Values of a field at points (x, y) in µm."""
        col, row = np.clip((np.asarray(xy) / self.step).astype(int), 0, len(self.labels) - 1).T
        return field[row, col]


def resize(field: np.ndarray, n: int) -> np.ndarray:
    """Resample a square field to n by n, bicubic, float32."""
    picture = Image.fromarray(np.ascontiguousarray(field, dtype=np.float32))
    return np.array(picture.resize((n, n), Image.Resampling.BICUBIC))


def smooth_field(rng: np.random.Generator, n: int, scale: float) -> np.ndarray:
    """Gaussian field on an n by n grid, mean 0, variance 1, smooth over `scale` cells."""
    nodes = int(np.clip(np.ceil(4 * n / scale), 8, n))
    noise = ndimage.gaussian_filter(rng.standard_normal((nodes + 8, nodes + 8)), 2.0)[4:-4, 4:-4]
    field = resize(noise, n)
    return (field - field.mean()) / field.std()


def _scatter(rng: np.random.Generator, chance: np.ndarray, step: float, *, spacing: float) -> np.ndarray:
    # A jittered lattice keeps cells apart as real cells do; `chance` is the probability to keep a point.
    size = len(chance) * step
    height = spacing * np.sqrt(0.75)
    row, col = np.mgrid[: int(size / height) + 1, : int(size / spacing) + 1]
    xy = np.column_stack([((col + 0.5 * (row % 2)) * spacing).ravel(), (row * height).ravel()])
    xy = xy + rng.uniform(-0.5, 0.5, 2) * spacing + rng.normal(0, 0.17 * spacing, xy.shape)
    xy = xy[((xy > 0) & (xy < size)).all(1)]
    col, row = (xy / step).astype(int).T
    return xy[rng.random(len(xy)) < chance[row, col]]


def make_tissue(rng: np.random.Generator, size_um: float) -> Tissue:
    """Draw the layout of a section: tissue outline, classes, glands and vessels, fibres, and all cells."""
    n = int(round(size_um / _STEP_UM))
    step = size_um / n
    y, x = (np.mgrid[:n, :n] + 0.5) / n * 2 - 1
    power = 3.0
    radius = ((np.abs(x) / 0.93) ** power + (np.abs(y) / 0.93) ** power) ** (1 / power)
    inside = 1 - radius + 0.075 * smooth_field(rng, n, n / 4) + 0.012 * smooth_field(rng, n, n / 25) > 0
    tears = smooth_field(rng, n, 110 / step) + 0.25 * smooth_field(rng, n, 25 / step) > 2.75
    inside &= ~tears
    distance = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
    solid = (ndimage.gaussian_filter(distance, 1.0) * step).astype(np.float32)
    labels = np.where(solid > 0, STROMA, BACKGROUND).astype(np.uint8)
    grade = np.clip(0.5 + 0.45 * smooth_field(rng, n, min(260, size_um / 4) / step), 0, 1)
    # A rotated frame, bent by smooth displacements: lines of constant `across` are the fibres.
    y, x = (np.mgrid[:n, :n] * step).astype(np.float32)
    angle = rng.uniform(0, np.pi)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    across = across + 75 * smooth_field(rng, n, 320 / step) + 9 * smooth_field(rng, n, 70 / step)
    along = along + 60 * smooth_field(rng, n, 320 / step)
    flow = np.stack([along, across]).astype(np.float32)
    blank = Nuclei(np.empty((0, 2)), np.empty(0, np.uint8), np.empty(0))
    tissue = Tissue(step, labels, solid, grade, flow, blank)
    benign = _zones(rng, tissue)
    # Only the sign near a border matters from here on; far values would ring when resampled.
    np.clip(solid, -_NEAR_UM, _NEAR_UM, out=solid)
    rings = [
        *_rings(rng, tissue, _scatter(rng, 0.95 * benign, step, spacing=92), label=GLAND),
        *_rings(rng, tissue, _scatter(rng, 0.7 * (labels == STROMA), step, spacing=85), label=VESSEL),
    ]
    return replace(tissue, nuclei=_cells(rng, tissue, rings))


def _top(field: np.ndarray, within: np.ndarray, share: float) -> np.ndarray:
    return within & (field > np.quantile(field[within], 1 - share)) if within.any() else within


def _zones(rng: np.random.Generator, tissue: Tissue) -> np.ndarray:
    """Label adipose, tumour, lymphoid and plasma areas in place; returns where benign glands may grow."""
    labels, step, n = tissue.labels, tissue.step, len(tissue.labels)
    scale = min(420.0, tissue.size_um / 3.5) / step

    def field(stretch: float = 1.0) -> np.ndarray:
        rough = 0.22 * smooth_field(rng, n, scale * stretch / 5) + 0.05 * smooth_field(rng, n, 24 / step)
        return smooth_field(rng, n, scale * stretch) + rough

    share = rng.uniform(0.85, 1.15, 5) * (0.17, 0.42, 0.32, 0.17, 0.30)
    edge = np.exp(-np.maximum(tissue.solid, 0) / 250)
    _adipose(rng, tissue, _top(field() + 1.0 * edge, labels == STROMA, share[0]))
    zone = _top(field(1.2) - 1.5 * edge, labels == STROMA, share[1])
    nests = zone & (smooth_field(rng, n, 95 / step) + 0.35 * smooth_field(rng, n, 30 / step) > -0.55)
    labels[nests] = TUMOUR
    free = (labels == STROMA) & ~zone
    benign = _top(field(), free, share[2])
    rim = ndimage.gaussian_filter(zone.astype(np.float32), 60 / step)
    aggregate = _top(field(0.55) + 1.2 * rim, free & ~benign, share[3])
    labels[aggregate] = LYMPHOID
    labels[_top(field(0.8), free & ~benign & ~aggregate, share[4])] = PLASMA
    return benign


def _adipose(rng: np.random.Generator, tissue: Tissue, zone: np.ndarray) -> None:
    # Whole Voronoi cells become fat cells; a soft minimum over the walls rounds their corners.
    step, labels, solid = tissue.step, tissue.labels, tissue.solid
    seeds = _scatter(rng, np.ones_like(solid), step, spacing=62)
    fat = tissue.at(zone, seeds)
    near = ndimage.binary_dilation(zone, iterations=int(45 / step)) & (labels == STROMA)
    if not fat.any() or not near.any():
        return
    row, col = np.nonzero(near)
    distance, cell = cKDTree(seeds).query(np.column_stack([col, row]) * step + step / 2, k=3)
    # Their outside neighbours take part, so that the wall's field is continuous across it.
    touched = fat[cell[:, :2]].any(1)
    row, col, distance, own = row[touched], col[touched], distance[touched], fat[cell[touched, 0]]
    wall = -4.5 * np.log(np.exp((distance[:, :1] - distance[:, 1:]) / 4.5).sum(1)) / 2
    labels[row[own], col[own]] = ADIPOSE
    thickness = 1.5 + 0.6 * tissue.grade[row, col]
    # The outermost cells close towards the glass.
    inward = np.where(own, np.minimum(wall, solid[row, col] - 0.5), -wall)
    solid[row, col] = np.minimum(solid[row, col], thickness - inward)


@dataclass(frozen=True)
class _Ring:
    """A duct or a vessel: a wavy outline with a lumen."""

    x: float
    y: float
    radius: float
    lumen: float
    waves: np.ndarray
    label: int

    def outline(self, theta: np.ndarray) -> np.ndarray:
        """Distance of the outer wall from the centre in µm, by angle."""
        (a2, a3, a5), (p2, p3, p5) = self.waves
        wave = a2 * np.cos(2 * theta + p2) + a3 * np.cos(3 * theta + p3) + a5 * np.cos(5 * theta + p5)
        return np.asarray(self.radius * (1 + wave))


def _rings(rng: np.random.Generator, tissue: Tissue, centres: np.ndarray, *, label: int) -> list[_Ring]:
    room = ndimage.distance_transform_edt(tissue.labels == STROMA) * tissue.step
    low, high = (20.0, 48.0) if label == GLAND else (9.0, 28.0)
    made: list[_Ring] = []
    for x, y in centres:
        radius = min(rng.uniform(0.6 * high, high), 0.8 * float(tissue.at(room, np.array([[x, y]]))[0]))
        apart = min((np.hypot(x - r.x, y - r.y) - 1.25 * r.radius for r in made), default=np.inf)
        radius = min(radius, 0.8 * apart)
        amplitude = np.array([0.14, 0.08, 0.05]) * rng.uniform(0.3, 1, 3)
        waves = np.stack([amplitude, rng.uniform(0, 2 * np.pi, 3)])
        lumen = rng.uniform(0.25, 0.62) if label == GLAND else rng.uniform(0.6, 0.75)
        if radius >= low:
            made.append(_Ring(float(x), float(y), radius, lumen, waves, label))
            _carve(tissue, made[-1])
    return made


def _carve(tissue: Tissue, ring: _Ring) -> None:
    step, n = tissue.step, len(tissue.labels)
    reach = 1.3 * ring.radius + _NEAR_UM
    x0, x1 = (int(np.clip((ring.x + s * reach) / step, 0, n)) for s in (-1, 1))
    y0, y1 = (int(np.clip((ring.y + s * reach) / step, 0, n)) for s in (-1, 1))
    y, x = (np.mgrid[y0:y1, x0:x1] + 0.5) * step
    radius, outline = np.hypot(x - ring.x, y - ring.y), ring.outline(np.arctan2(y - ring.y, x - ring.x))
    labels, solid = tissue.labels[y0:y1, x0:x1], tissue.solid[y0:y1, x0:x1]
    labels[radius < outline] = ring.label
    # The lumen's edge is ragged: apical blebs of the epithelium.
    ragged = 0.8 * tissue.flow[1, y0:y1, x0:x1] % 3.0 - 1.5 if ring.label == GLAND else 0.0
    np.minimum(solid, radius - ring.lumen * outline + ragged, out=solid)


def _cells(rng: np.random.Generator, tissue: Tissue, rings: list[_Ring]) -> Nuclei:
    labels, step, grade = tissue.labels, tissue.step, tissue.grade
    inside = tissue.solid > 1.5
    tumour = ((labels == TUMOUR) & inside) * (0.45 + 0.55 * grade)
    nests = _scatter(rng, tumour, step, spacing=11.5)
    dividing = rng.random(len(nests)) < 0.002 + 0.05 * tissue.at(grade, nests) ** 2
    halo = ndimage.gaussian_filter((labels == LYMPHOID).astype(np.float32), 22 / step)
    stray = np.clip(0.012 + 0.7 * halo, 0, 1) * np.isin(labels, (STROMA, TUMOUR, PLASMA))
    lymphocyte = np.where(labels == LYMPHOID, 0.93, stray) * inside
    plasma = 0.75 * ((labels == PLASMA) & inside)
    spindle = np.array([0, 0, 0.62, 0.05, 0.35, 0.30, 0.0, 0])[labels] * inside
    parts = [
        (nests[~dividing], KINDS.index("tumour")),
        (nests[dividing], KINDS.index("mitosis")),
        (_scatter(rng, lymphocyte, step, spacing=7.4), KINDS.index("lymphocyte")),
        (_scatter(rng, plasma, step, spacing=11.5), KINDS.index("plasma")),
        (_scatter(rng, spindle, step, spacing=21.0), KINDS.index("fibroblast")),
    ]
    xy = np.concatenate([p for p, _ in parts])
    kind = np.concatenate([np.full(len(p), k, np.uint8) for p, k in parts])
    angle = rng.uniform(0, np.pi, len(xy))
    gy, gx = np.gradient(tissue.flow[1])
    fibres = np.arctan2(tissue.at(gx, xy), -tissue.at(gy, xy))
    angle = np.where(kind == KINDS.index("fibroblast"), fibres + rng.normal(0, 0.2, len(xy)), angle)
    found = [(xy, kind, angle), *(_ring_cells(rng, r) for r in rings)]
    return Nuclei(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _ring_cells(rng: np.random.Generator, ring: _Ring) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    gland = ring.label == GLAND
    spacing, inset = (6.8, 5.2) if gland else (16.0, 1.5)
    count = max(3, int(2 * np.pi * ring.radius / spacing))
    theta = (np.arange(count) + rng.uniform(-0.25, 0.25, count)) * 2 * np.pi / count
    radius = ring.outline(theta) - inset - rng.uniform(0, 3.0 if gland else 1.0, count)
    angle = theta + (0 if gland else np.pi / 2) + rng.normal(0, 0.15, count)
    kind = np.full(count, KINDS.index("gland" if gland else "fibroblast"), np.uint8)
    if not gland:
        blood = int(rng.uniform(0.35, 0.95) * (ring.lumen * ring.radius / 3.2) ** 2)
        spread = rng.uniform(0, 2 * np.pi, blood)
        theta = np.concatenate([theta, spread])
        radius = np.concatenate([radius, (ring.lumen * ring.outline(spread) - 2.5) * np.sqrt(rng.random(blood))])
        angle = np.concatenate([angle, spread])
        kind = np.concatenate([kind, np.full(blood, KINDS.index("erythrocyte"), np.uint8)])
    xy = np.column_stack([ring.x + radius * np.cos(theta), ring.y + radius * np.sin(theta)])
    return xy, kind, angle
