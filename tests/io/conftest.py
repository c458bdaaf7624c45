"""Folders as Space Ranger writes them, small and with known contents."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from PIL import Image
from scipy.io import mmwrite

COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]
SCALEF = {"hires": 0.5, "lowres": 0.15}
GENES = ("EPCAM", "KRT8", "VIM", "COL1A1", "CD3E", "MS4A1", "ERBB2", "ACTB", "MALAT1", "PTPRC")


def write_h5(path: Path, counts: Any, barcodes: list[str], features: pd.DataFrame) -> None:
    """Matrix in 10x's HDF5 format 3: compressed columns, one per barcode."""
    x = sp.csr_matrix(counts)
    with h5py.File(path, "w") as file:
        file.attrs.update({"filetype": "matrix", "version": 2, "chemistry_description": "Visium"})
        file.attrs["library_ids"] = np.array([b"lib"])
        matrix = file.create_group("matrix")
        matrix["barcodes"] = np.array(barcodes, dtype="S")
        matrix["data"], matrix["indices"] = x.data.astype(np.int32), x.indices.astype(np.int64)
        matrix["indptr"], matrix["shape"] = x.indptr.astype(np.int64), np.array(x.shape[::-1], dtype=np.int32)
        group = matrix.create_group("features")
        for name, column in {"id": "id", "name": "name", "feature_type": "type", "genome": "genome"}.items():
            group[name] = np.array(features[column].to_list(), dtype="S")
        group["_all_tag_keys"] = np.array([b"genome"])


def write_mtx(folder: Path, counts: Any, barcodes: list[str], features: pd.DataFrame, *, packed: bool = True) -> None:
    """Matrix in 10x's text format, gzipped (version 3) or plain."""
    folder.mkdir(exist_ok=True)
    mmwrite(folder / "matrix.mtx", sp.coo_matrix(sp.csr_matrix(counts).T), field="integer")
    (folder / "barcodes.tsv").write_text("".join(f"{b}\n" for b in barcodes))
    features[["id", "name", "type"]].to_csv(folder / "features.tsv", sep="\t", header=False, index=False)
    for name in ("matrix.mtx", "barcodes.tsv", "features.tsv") if packed else ():
        pack(folder / name)


def pack(path: Path) -> Path:
    """Replace a file by its gzipped copy."""
    packed = path.with_name(path.name + ".gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    return packed


def feature_table(genes: tuple[str, ...]) -> pd.DataFrame:
    """Genes and one antibody."""
    frame = pd.DataFrame({"id": [f"ENSG{i:011d}" for i in range(len(genes))], "name": genes})
    frame["type"], frame["genome"] = "Gene Expression", "GRCh38"
    frame.loc[len(frame)] = ["CD3_TotalSeqB", "CD3_TotalSeqB", "Antibody Capture", ""]
    return frame


def dotted(size: tuple[int, int], xy: np.ndarray, radius: float) -> np.ndarray:
    """Pale picture (width, height) with a dot at each place, whose colour tells which it is."""
    image = np.full((size[1], size[0], 3), (236, 200, 220), dtype=np.uint8)
    y, x = np.mgrid[: size[1], : size[0]] + 0.5
    for i, (cx, cy) in enumerate(xy):
        image[np.hypot(x - cx, y - cy) <= radius] = dot_colour(i)
    return image


def dot_colour(i: int) -> tuple[int, int, int]:
    """Colour of the dot of spot `i`."""
    return (20, 20 + 40 * (i % 4), 20 + 12 * (i // 4 % 8))


@dataclass
class Files:
    """A folder as written, and what is in it."""

    outs: Path
    image: np.ndarray
    mpp: float
    #: (x, y) in pixels of `image`, for all positions
    xy: np.ndarray
    array: np.ndarray
    barcodes: list[str]
    tissue: np.ndarray
    features: pd.DataFrame
    #: all positions, all features
    counts: np.ndarray

    @property
    def spatial(self) -> Path:
        return self.outs / "spatial"

    @property
    def positions(self) -> pd.DataFrame:
        frame = pd.DataFrame({"barcode": self.barcodes, "in_tissue": self.tissue.astype(int)})
        frame[["array_row", "array_col"]] = self.array
        frame[["pxl_row_in_fullres", "pxl_col_in_fullres"]] = self.xy[:, ::-1]
        return frame

    @property
    def table(self) -> np.ndarray:
        """Counts of genes of the spots in tissue."""
        return self.counts[self.tissue][:, (self.features["type"] == "Gene Expression").to_numpy()]

    @property
    def names(self) -> list[str]:
        """Barcodes in tissue."""
        return [b for b, t in zip(self.barcodes, self.tissue, strict=True) if t]

    def save_positions(
        self, frame: pd.DataFrame | None = None, *, name: str = "tissue_positions.csv", **kw: Any
    ) -> Path:
        """Replace the table of positions."""
        for old in self.spatial.glob("tissue_positions*"):
            old.unlink()
        path = self.spatial / name
        frame = self.positions if frame is None else frame
        frame.to_parquet(path, index=False) if name.endswith("parquet") else frame.to_csv(path, index=False, **kw)
        return path

    def save_matrix(self, kind: str = "filtered", **change: Any) -> Path:
        """Write the h5 file of counts, with what `change` replaces."""
        rows = self.tissue if kind == "filtered" else np.ones(len(self.tissue), bool)
        barcodes = self.names if kind == "filtered" else self.barcodes
        parts = {"counts": self.counts[rows], "barcodes": barcodes, "features": self.features} | change
        path = self.outs / f"{kind}_feature_bc_matrix.h5"
        write_h5(path, **parts)
        return path

    def factors(self, **change: float | None) -> None:
        """Change entries of the scale factors; None removes one."""
        path = self.spatial / "scalefactors_json.json"
        held = json.loads(path.read_text()) | change
        path.write_text(json.dumps({k: v for k, v in held.items() if v is not None}))

    def save_picture(self, name: str = "slide.png") -> Path:
        """Write the full-resolution picture beside the folder."""
        path = self.outs.parent / name
        Image.fromarray(self.image).save(path)
        return path


def small_pictures(spatial: Path, image: np.ndarray, factors: dict[str, float]) -> dict[str, float]:
    """Write hires and lowres; returns their exact factors."""
    spatial.mkdir(parents=True, exist_ok=True)
    found = {}
    for kind, factor in factors.items():
        width, height = (round(n * factor) for n in image.shape[1::-1])
        Image.fromarray(image).resize((width, height), Image.Resampling.BOX).save(spatial / f"tissue_{kind}_image.png")
        found[f"tissue_{kind}_scalef"] = factor
    return found


def write_visium(
    folder: Path, *, mpp: float = 1.0, turn: float = 0.0, mirror: bool = False, spot_um: float = 65.0
) -> Files:
    """A folder of 8 x 6 spots as Space Ranger 2 writes it."""
    rng = np.random.default_rng(0)
    row, col = (a.ravel() for a in np.mgrid[:8, :12])
    array = np.column_stack([row, col])[(row + col) % 2 == 0]
    um = array[:, ::-1] * [50.0, 100 * np.sqrt(0.75)]
    um = (um - um.mean(0)) * [-1 if mirror else 1, 1]
    c, s = np.cos(turn), np.sin(turn)
    size = (round(960 / mpp), round(1000 / mpp))
    xy = np.rint(um @ np.array([[c, s], [-s, c]]) / mpp + np.array(size) / 2).astype(int)
    barcodes = ["".join(rng.choice(list("ACGT"), 16)) + "-1" for _ in array]
    tissue = (array[:, 1] > 1) & (array[:, 0] != 3)
    features = feature_table(GENES)
    counts = rng.poisson(3.0, (len(array), len(features)))
    files = Files(folder / "outs", dotted(size, xy, 8 / mpp), mpp, xy, array, barcodes, tissue, features, counts)
    factors = small_pictures(files.spatial, files.image, SCALEF)
    factors |= {"spot_diameter_fullres": spot_um / mpp, "fiducial_diameter_fullres": 105 / mpp}
    (files.spatial / "scalefactors_json.json").write_text(json.dumps(factors))
    files.save_matrix()
    files.save_positions()
    return files


@dataclass
class FilesHD(Files):
    """A folder of Visium HD; its tables are of the smallest bins."""

    def bins(self, um: int) -> Path:
        return self.outs / "binned_outputs" / f"square_{um:03d}um"


def write_visium_hd(
    folder: Path, *, sizes: tuple[int, ...] = (2, 8, 16), mpp: float = 0.5, n: int = 80, turn: float = 0.02
) -> FilesHD:
    """A folder of `n` x `n` bins of 2 µm, and larger ones, as Space Ranger 3 writes it."""
    rng = np.random.default_rng(1)
    outs, features = folder / "outs", feature_table(GENES)
    row, col = (a.ravel() for a in np.mgrid[:n, :n])
    size = (round(2.4 * n / mpp), round(2.6 * n / mpp))
    c, s = np.cos(turn), np.sin(turn)

    def place(r: np.ndarray, q: np.ndarray, um: int) -> np.ndarray:
        centre = np.column_stack([(q + 0.5) * um, (r + 0.5) * um]) - n
        return centre @ np.array([[c, s], [-s, c]]) / mpp + np.array(size) / 2

    counts = rng.poisson(0.5, (len(row), len(features)))
    tissue = np.hypot(row - n / 2, col - n / 2) < 0.47 * n
    image = dotted(size, np.zeros((0, 2)), 1)
    small = small_pictures(outs / "spatial", image, SCALEF)
    (outs / "feature_slice.h5").parent.mkdir(exist_ok=True, parents=True)
    with h5py.File(outs / "feature_slice.h5", "w") as file:
        file.attrs["metadata_json"] = json.dumps({"hd_layout_json": json.dumps({"file_format": "1.0"})})
    for um in sizes:
        k = um // 2
        r, q = (a.ravel() for a in np.mgrid[: n // k, : n // k])
        member = (row // k) * (n // k) + col // k
        total = np.zeros((len(r), counts.shape[1]), int)
        np.add.at(total, member, np.where(tissue[:, None], counts, 0))
        covered = np.bincount(member, tissue) > 0
        names = [f"s_{um:03d}um_{i:05d}_{j:05d}-1" for i, j in zip(r, q, strict=True)]
        part = FilesHD(
            outs / "binned_outputs" / f"square_{um:03d}um",
            image, mpp, place(r, q, um), np.column_stack([r, q]), names, covered, features, total,
        )  # fmt: skip
        part.spatial.mkdir(parents=True)
        part.save_matrix()
        part.save_positions(name="tissue_positions.parquet")
        factors = small | {"spot_diameter_fullres": um / mpp, "bin_size_um": float(um), "microns_per_pixel": mpp}
        (part.spatial / "scalefactors_json.json").write_text(json.dumps(factors | {"regist_target_img_scalef": 0.9}))
    names = [f"s_002um_{i:05d}_{j:05d}-1" for i, j in zip(row, col, strict=True)]
    return FilesHD(outs, image, mpp, place(row, col, 2), np.column_stack([row, col]), names, tissue, features, counts)


@pytest.fixture(scope="session")
def _visium_template(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return write_visium(tmp_path_factory.mktemp("template"))


@pytest.fixture
def visium(tmp_path: Path, _visium_template: Files) -> Files:
    """A Visium folder that a test may damage."""
    return _copied(_visium_template, tmp_path / "run")


@pytest.fixture(scope="session")
def _visium_hd_template(tmp_path_factory: pytest.TempPathFactory) -> FilesHD:
    return write_visium_hd(tmp_path_factory.mktemp("template_hd"))


@pytest.fixture
def visium_hd(tmp_path: Path, _visium_hd_template: FilesHD) -> FilesHD:
    """A Visium HD folder that a test may damage."""
    return _copied(_visium_hd_template, tmp_path / "run_hd")


def _copied(files: Any, folder: Path) -> Any:
    shutil.copytree(files.outs, folder / "outs")
    return type(files)(**{**files.__dict__, "outs": folder / "outs"})


@pytest.fixture
def make_visium(tmp_path: Path) -> Callable[..., Files]:
    """Write a Visium folder with options of its own."""
    return lambda **kw: write_visium(tmp_path / "made", **kw)


@pytest.fixture
def make_visium_hd(tmp_path: Path) -> Callable[..., FilesHD]:
    """Write a Visium HD folder with options of its own."""
    return lambda **kw: write_visium_hd(tmp_path / "made", **kw)


@pytest.fixture(name="write_mtx")
def _write_mtx() -> Callable[..., None]:
    return write_mtx


@pytest.fixture(name="write_h5")
def _write_h5() -> Callable[..., None]:
    return write_h5


@pytest.fixture(name="dot_colour")
def _dot_colour() -> Callable[[int], tuple[int, int, int]]:
    return dot_colour


@pytest.fixture(name="dotted")
def _dotted() -> Callable[..., np.ndarray]:
    return dotted
