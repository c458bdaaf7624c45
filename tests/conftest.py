"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from spatialdata import SpatialData

import sealst as sl

# Before torch and matplotlib are imported: few threads, one where pytest runs in several processes; no display.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
        os.environ[_name] = "1"
    os.environ.setdefault(_name, "2")
# Threads that wait for each other must not spin: beside other work on the machine, that takes 20 times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["MPLBACKEND"] = "Agg"

ROOT = Path(__file__).resolve().parents[1]
TOY_GENES = ("EPCAM", "KRT8", "VIM", "COL1A1", "CD3E", "MS4A1", "ERBB2", "ACTB")


@pytest.fixture(scope="session", autouse=True)
def _quiet_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No progress bars, and a cache that is not the user's."""
    with sl.settings.override(progress=False, cache_dir=tmp_path_factory.mktemp("cache")):
        yield


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with the real sections (environment variable ``SEALST_SHARED``, default ``../shared``)."""
    folder = Path(os.environ.get("SEALST_SHARED", ROOT.parent / "shared"))
    if not (folder / "data" / "her2st").is_dir():
        pytest.skip(f"no real sections at {folder / 'data' / 'her2st'}; name their folder with SEALST_SHARED")
    return folder


@pytest.fixture(scope="session")
def her2st_c2(shared_dir: Path) -> SpatialData:
    """Section C2 of her2st, read once. Do not change it: use ``copy=True`` or a copy of the table."""
    return sl.datasets.her2st("C2", path=shared_dir / "data" / "her2st")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the lines that tests have recorded as ``summary``, so that the log of a run shows them."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, text in getattr(report, "user_properties", ()):
                if name == "summary" and report.when == "call":
                    terminalreporter.write_line(text)


def toy_image(size: int = 600) -> np.ndarray:
    """Image in which red rises along x, green along y, and blue is a checkerboard of 20 px squares."""
    ramp = np.arange(size) * 255 // (size - 1)
    tiles = np.arange(size) // 20 % 2
    image = np.empty((size, size, 3), dtype=np.uint8)
    image[..., 0], image[..., 1] = ramp[None, :], ramp[:, None]
    image[..., 2] = np.where(tiles[None, :] == tiles[:, None], 60, 200)
    return image


@pytest.fixture
def toy_section() -> Callable[..., SpatialData]:
    """Build a section of 6 x 6 spots on a square lattice (pitch 90 px) in an image of 600 x 600 px at 1 µm per pixel.

    The first gene rises along x, the second along y, the others do not depend on the position.
    """

    def build(
        *, section: str = "toy", patient: str = "p1", seed: int = 0, n: int = 6, mpp: float = 1.0, depth: float = 20.0
    ) -> SpatialData:
        rng = np.random.default_rng(seed)
        row, column = (a.ravel() for a in np.divmod(np.arange(n * n), n))
        rates = np.full((n * n, len(TOY_GENES)), depth)
        rates[:, 0] *= (1 + column) / n
        rates[:, 1] *= (1 + row) / n
        xy = np.column_stack([75 + 90.0 * column, 75 + 90.0 * row])
        image = toy_image(90 * n + 60)
        # Two sections never have one picture, pixel by pixel.
        image[..., 2] += np.random.default_rng([*section.encode()]).integers(0, 2, image.shape[:2], dtype=np.uint8)
        return sl.io.from_arrays(
            image,
            rng.poisson(rates),
            xy,
            genes=TOY_GENES,
            mpp=mpp,
            spot_um=55 * mpp,
            section=section,
            spot_ids=[f"{c}x{r}" for r, c in zip(row, column, strict=True)],
            patient=patient,
            organ="breast",
            technology="toy",
            array=np.column_stack([row, column]),
        )

    return build
