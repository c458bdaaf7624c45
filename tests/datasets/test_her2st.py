from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from PIL import Image
from spatialdata import SpatialData
from spatialdata.transformations import remove_transformation

import sealst as sl
from sealst._section import image_levels, mpp_of
from sealst.datasets import _her2st

#: section: spots, genes, median counts per spot, image (width, height), µm per pixel
TABLE = {
    "A1": (346, 15045, 4291, (2000, 2138), 3.19),
    "B4": (283, 15289, 648, (9272, 9923), 0.688),
    "C2": (187, 15706, 8508, (9274, 9911), 0.688),
    "C3": (180, 15821, 9549, (9270, 9936), 0.687),
    "C4": (184, 15842, 10190.5, (9278, 9916), 0.688),
    "C5": (181, 15721, 10015, (9272, 9901), 0.689),
}
PATIENTS = {"A1": "A", "B4": "B", "C2": "C", "C3": "C", "C4": "C", "C5": "C"}
CLUSTERED = {"A1": 345, "B4": 222, "C2": 185, "C3": 179, "C4": 184, "C5": 179}
#: section without image: spots with counts, of these with a pathologist's region
COUNTS_ONLY = {"D4": (302, None), "G2": (467, 467)}
#: where the source repository keeps the files of section A1
SOURCES = {
    "data/ST-cnts/A1.tsv.gz": "A1.tsv.gz",
    "data/ST-spotfiles/A1_selection.tsv": "A1_selection.tsv",
    "res/ST-cluster/lbl/A1-cluster-annotation.tsv.gz": "A1-cluster-annotation.tsv.gz",
    "data/ST-pat/lbl/A1_labeled_coordinates.tsv": "A1_labeled_coordinates.tsv",
    "app/www/imgs/A1_HE_image_dark.png": "A1_HE_image_dark.png",
}


@pytest.fixture(scope="module")
def a1(shared_dir: Path) -> SpatialData:
    return sl.datasets.her2st("A1", path=shared_dir / "data" / "her2st")


def check_against_table(name: str, sdata: SpatialData) -> None:
    spots, genes, median, (width, height), mpp = TABLE[name]
    table = sdata.tables["table"]
    assert table.shape == (spots, genes)
    assert np.median(np.asarray(table.X.sum(axis=1))) == median
    assert image_levels(sdata.images[f"{name}_he"])[0].shape == (3, height, width)
    assert mpp_of(sdata.images[f"{name}_he"]) == pytest.approx(mpp, rel=0.01)
    assert set(table.obs["patient"]) == {PATIENTS[name]}
    assert set(table.obs["section"]) == {name}
    assert set(table.obs["organ"]) == {"breast"}
    assert table.obs["cluster"].notna().sum() == CLUSTERED[name]
    assert table.var_names.is_unique
    assert "ERBB2" in table.var_names
    diameter = 2 * sdata.shapes[f"{name}_spots"]["radius"].to_numpy()
    assert diameter == pytest.approx(100 / mpp, rel=0.01)


# -- the real sections ------------------------------------------------------------------------------------------------
def test_c2_is_the_section_of_the_table(her2st_c2: SpatialData) -> None:
    check_against_table("C2", her2st_c2)
    assert "label" not in her2st_c2.tables["table"].obs


def test_a1_is_the_section_of_the_table(a1: SpatialData) -> None:
    check_against_table("A1", a1)
    regions = a1.tables["table"].obs["label"].value_counts().to_dict()
    assert regions == {
        "invasive cancer": 282,
        "connective tissue": 24,
        "cancer in situ": 21,
        "adipose tissue": 12,
        "undetermined": 5,
        "immune infiltrate": 2,
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["B4", "C3", "C4", "C5"])
def test_other_sections(name: str, shared_dir: Path) -> None:
    (sdata,) = sl.datasets.her2st([name], path=shared_dir / "data" / "her2st")
    check_against_table(name, sdata)


@pytest.mark.parametrize("name", ["B4", "C2", "C3", "C4", "C5"])
def test_scale_and_counts_of_other_sections(name: str, shared_dir: Path) -> None:
    # With a blank picture of a twentieth of the size, as decoding the large ones takes seconds.
    spots, genes, median, (width, height), mpp = TABLE[name]
    folder = shared_dir / "data" / "her2st" / name
    sdata = sl.io.read_st(
        folder / f"{name}.tsv.gz",
        folder / f"{name}_selection.tsv",
        np.zeros((height // 20, width // 20, 3), dtype=np.uint8),
        section=name,
        organ="breast",
        coordinate_scale=1 / 20,
    )
    assert sdata.tables["table"].shape == (spots, genes)
    assert np.median(np.asarray(sdata.tables["table"].X.sum(axis=1))) == median
    assert mpp_of(sdata.images[f"{name}_he"]) / 20 == pytest.approx(mpp, rel=0.01)
    # The same from the distances of neighbours alone, as where no array coordinates are known.
    remove_transformation(sdata.images[f"{name}_he"], "um")
    sl.pp.pair_crops(sdata, pitch_um=200)
    assert sdata.tables["table"].uns["sealst"]["crops"][f"{name}_spots"]["mpp"] / 20 == pytest.approx(0.688, rel=0.01)


def test_one_spot_equals_the_files(her2st_c2: SpatialData, shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shared_dir / "data" / "her2st" / "C2"
    counts = pd.read_csv(folder / "C2.tsv.gz", sep="\t", index_col=0)
    places = pd.read_csv(folder / "C2_selection.tsv", sep="\t")
    spot = counts.index[77]
    place = places[(places["x"].astype(str) + "x" + places["y"].astype(str)) == spot].iloc[0]
    table = her2st_c2.tables["table"]
    row = table.obs_names.get_loc(f"C2_{spot}")
    assert list(table.var_names) == list(counts.columns)
    np.testing.assert_array_equal(table.X[row].toarray()[0], counts.loc[spot])
    np.testing.assert_allclose(table.obsm["spatial"][row], [place["pixel_x"], place["pixel_y"]])
    circle = her2st_c2.shapes["C2_spots"].geometry[spot]
    np.testing.assert_allclose([circle.x, circle.y], [place["pixel_x"], place["pixel_y"]])
    assert (table.obs["array_col"].iloc[row], table.obs["array_row"].iloc[row]) == (place["x"], place["y"])
    # Four pixels of the image, decoded here once more.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    x, y = int(place["pixel_x"]), int(place["pixel_y"])
    with Image.open(folder / "5714_HE_BT_C2.jpg") as picture:
        pixels = np.asarray(picture.crop((x - 1, y - 1, x + 1, y + 1)))
    level = image_levels(her2st_c2.images["C2_he"])[0]
    np.testing.assert_array_equal(level[:, y - 1 : y + 1, x - 1 : x + 1].to_numpy().transpose(1, 2, 0), pixels)


def test_spots_lie_on_tissue(her2st_c2: SpatialData) -> None:
    levels = image_levels(her2st_c2.images["C2_he"])
    height, width = levels[0].shape[1:]
    pixels = levels[4].to_numpy().astype(float)
    saturation = (pixels.max(axis=0) - pixels.min(axis=0)) / pixels.max(axis=0)
    darkness = 255 - pixels.mean(axis=0)

    def at(values: np.ndarray, xy: np.ndarray) -> np.ndarray:
        return values[
            (xy[:, 1] * values.shape[0] / height).astype(int), (xy[:, 0] * values.shape[1] / width).astype(int)
        ]

    xy = her2st_c2.tables["table"].obsm["spatial"]
    grid = np.stack(np.meshgrid(np.arange(200, 9000, 200), np.arange(200, 9700, 200)), axis=-1).reshape(-1, 2)
    far = grid[np.linalg.norm(grid[:, None] - xy[None], axis=2).min(axis=1) > 600]
    assert len(far) > 500
    assert at(saturation, xy).mean() > 5 * at(saturation, far).mean()
    assert (at(darkness, xy) > 30).mean() > 0.98
    assert (at(darkness, far) > 30).mean() < 0.02
    # Exchanged or mirrored coordinates put many spots beside the tissue.
    assert (at(darkness, xy[:, ::-1]) > 30).mean() < 0.9
    assert (at(darkness, [width, 0] + xy * [-1, 1]) > 30).mean() < 0.7


def test_a1_spots_avoid_overview_and_mask(a1: SpatialData) -> None:
    xy = a1.tables["table"].obsm["spatial"]
    half = 56 / 3.19  # half of a 112 µm crop, in pixels
    assert not ((xy[:, 0] + half >= 1500) & (xy[:, 1] - half <= 534)).any()
    level = image_levels(a1.images["A1_he"])[0].to_numpy()
    centres = level[:, xy[:, 1].astype(int), xy[:, 0].astype(int)]
    assert (centres.max(axis=0) > 20).all()


def test_a1_labels_equal_the_file(a1: SpatialData, shared_dir: Path) -> None:
    frame = pd.read_csv(shared_dir / "data" / "her2st" / "A1" / "A1_labeled_coordinates.tsv", sep="\t")
    labels = {f"{round(x)}x{round(y)}": label for x, y, label in frame[["x", "y", "label"]].to_numpy()}
    obs = a1.tables["table"].obs
    assert list(obs["label"]) == [labels[i] for i in obs["spot_id"]]


def test_provenance(a1: SpatialData) -> None:
    entry = a1.tables["table"].uns["sealst"]["her2st"]
    assert entry["licence"] == "not stated by the source repository"
    assert entry["donor"] == "9769"
    assert "licence" in (sl.datasets.her2st.__doc__ or "").lower()
    assert "licence" in (sl.datasets.her2st_counts.__doc__ or "").lower()


def test_registry_holds_the_published_sums(shared_dir: Path) -> None:
    lines = (shared_dir / "data" / "SHA256SUMS").read_text().split("\n")
    published = {name: digest for digest, name in (line.split() for line in lines if line)}
    assert dict(_her2st._SHA256) == published
    used = {
        f"{facts.dataset}/{file.local}"
        for name, facts in _her2st._SECTIONS.items()
        for file in _her2st._files(name).values()
    }
    assert used == set(published)


@pytest.mark.parametrize("name", COUNTS_ONLY)
def test_counts_only(name: str, shared_dir: Path) -> None:
    adata = sl.datasets.her2st_counts(name, path=shared_dir / "data" / "her2st_counts")
    assert isinstance(adata, AnnData)
    spots, labelled = COUNTS_ONLY[name]
    assert adata.n_obs == spots
    assert adata.X.dtype == np.float32
    assert set(adata.obs["patient"]) == {name[0]}
    assert list(adata.obs_names[:2]) == [f"{name}_{i}" for i in adata.obs["spot_id"][:2]]
    assert ("label" in adata.obs) == (labelled is not None)
    if labelled is not None:
        assert adata.obs["label"].notna().sum() == labelled
    # Array and pixel coordinates tell the same pitch.
    for axis, column in enumerate(("array_col", "array_row")):
        assert np.polyfit(adata.obs[column], adata.obsm["spatial"][:, axis], 1)[0] == pytest.approx(290, rel=0.02)


# -- where files are found --------------------------------------------------------------------------------------------
@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A section T1 of four spots in place of the real ones, in the layout of the source and in ours."""
    repository = tmp_path / "repository"
    texts = {
        "data/ST-cnts/T1.tsv.gz": "\tERBB2\tVIM\n1x1\t3\t0\n2x1\t1\t2\n1x2\t0\t5\n2x2\t4\t4\n",
        "data/ST-spotfiles/T1_selection.tsv": (
            "x\ty\tpixel_x\tpixel_y\n1\t1\t20\t20\n2\t1\t60\t20\n1\t2\t20\t60\n2\t2\t60\t60\n"
        ),
        "res/ST-cluster/lbl/T1-cluster-annotation.tsv.gz": "\tlabel\tx\ty\na\t0\t1\t1\nb\t1\t2\t2\n",
    }
    for source, text in texts.items():
        path = repository / source
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    image = repository / "data/ST-imgs/T/T1/T1.png"
    image.parent.mkdir(parents=True)
    Image.fromarray(np.full((80, 80, 3), 200, dtype=np.uint8)).save(image)
    files = [path for path in repository.rglob("*") if path.is_file()]
    sums = {f"her2st/T1/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    section = _her2st._Section("T", donor="1", image="data/ST-imgs/T/T1/T1.png")
    monkeypatch.setattr(_her2st, "_SECTIONS", {"T1": section})
    monkeypatch.setattr(_her2st, "_SHA256", sums)
    monkeypatch.delenv("SEALST_SHARED", raising=False)
    cache = tmp_path / "cache"
    with sl.settings.override(cache_dir=cache):
        yield SimpleNamespace(repository=repository, files=files, cache=cache / "her2st", tmp=tmp_path)


def fill(folder: Path, files: list[Path]) -> Path:
    (folder / "T1").mkdir(parents=True)
    for path in files:
        shutil.copy(path, folder / "T1" / path.name)
    return folder


def stored(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


class _Handler(http.server.SimpleHTTPRequestHandler):
    cut = False

    def log_message(self, *args: object) -> None:
        pass

    def copyfile(self, source: object, outputfile: object) -> None:
        if self.cut:
            outputfile.write(source.read(20))  # type: ignore[attr-defined]
        else:
            super().copyfile(source, outputfile)  # type: ignore[arg-type]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Serve a folder at 127.0.0.1 in place of the source repository; returns the paths that are asked for."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers = []

    def start(folder: Path, *, cut: bool = False) -> list[str]:
        asked: list[str] = []

        class Handler(_Handler):
            def do_GET(self) -> None:
                asked.append(self.path)
                super().do_GET()

        Handler.cut = cut
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(_her2st, "_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        return asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens where the source repository should be."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(_her2st, "_BASE_URL", f"http://127.0.0.1:{port}")


def test_base_url_is_the_pinned_commit() -> None:
    expected = "https://raw.githubusercontent.com/almaan/her2st/85df7411b987a7dec3feff9718b869a7a82091ec"
    assert expected == _her2st._BASE_URL


def test_files_in_path_are_used(tiny: SimpleNamespace, offline: None) -> None:
    sdata = sl.datasets.her2st("T1", path=fill(tiny.tmp / "mine", tiny.files))
    assert sdata.tables["table"].n_obs == 4
    clusters = sdata.tables["table"].obs.set_index("spot_id")["cluster"]
    assert clusters.dropna().to_dict() == {"1x1": "0", "2x2": "1"}


def test_files_below_the_environment_variable_are_used(
    tiny: SimpleNamespace, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tiny.tmp / "shared" / "data" / "her2st", tiny.files)
    monkeypatch.setenv("SEALST_SHARED", str(tiny.tmp / "shared"))
    assert sl.datasets.her2st("T1").tables["table"].n_obs == 4
    assert not tiny.cache.exists()


def test_files_in_the_cache_are_used(tiny: SimpleNamespace, offline: None) -> None:
    fill(tiny.cache, tiny.files)
    assert sl.datasets.her2st("T1").tables["table"].n_obs == 4


def test_several_sections_give_a_list(tiny: SimpleNamespace, offline: None) -> None:
    folder = fill(tiny.tmp / "mine", tiny.files)
    assert [type(s) for s in sl.datasets.her2st(["T1", "T1"], path=folder)] == [SpatialData, SpatialData]
    assert sl.datasets.her2st([], path=folder) == []


def test_changed_file_is_refused(tiny: SimpleNamespace, offline: None) -> None:
    folder = fill(tiny.tmp / "mine", tiny.files)
    with (folder / "T1" / "T1_selection.tsv").open("a") as stream:
        stream.write("\n")
    with pytest.raises(
        sl.DataError, match=r"T1_selection.tsv' is not the source's file: its SHA-256 is \w{16}…, expected"
    ):
        sl.datasets.her2st("T1", path=folder)


def test_download_fills_the_cache_once(tiny: SimpleNamespace, serve: object) -> None:
    asked = serve(tiny.repository)
    assert sl.datasets.her2st("T1").tables["table"].n_obs == 4
    assert stored(tiny.cache) == sorted(path.name for path in tiny.files)
    assert sorted(asked) == sorted(f"/{path.relative_to(tiny.repository)}" for path in tiny.files)
    sl.datasets.her2st("T1")
    assert len(asked) == len(tiny.files)


def test_only_missing_files_are_downloaded(tiny: SimpleNamespace, serve: object) -> None:
    asked = serve(tiny.repository)
    folder = fill(tiny.tmp / "mine", [path for path in tiny.files if path.suffix != ".png"])
    sl.datasets.her2st("T1", path=folder)
    assert asked == ["/data/ST-imgs/T/T1/T1.png"]
    assert stored(tiny.cache) == ["T1.png"]


def test_download_with_another_checksum_is_not_kept(tiny: SimpleNamespace, serve: object) -> None:
    serve(tiny.repository)
    (tiny.repository / "data/ST-spotfiles/T1_selection.tsv").write_text("x\ty\n")
    with pytest.raises(
        sl.DataError, match="T1_selection.tsv was downloaded but is not the file expected, so it was not"
    ):
        sl.datasets.her2st("T1")
    # The file before it is complete and stays; of the wrong one nothing does.
    assert stored(tiny.cache) == ["T1.tsv.gz"]


def test_download_that_breaks_off_is_not_kept(tiny: SimpleNamespace, serve: object) -> None:
    serve(tiny.repository, cut=True)
    with pytest.raises(sl.DataError, match="Could not download .*T1.tsv.gz"):
        sl.datasets.her2st("T1")
    assert stored(tiny.cache) == []


def test_file_absent_at_the_source(tiny: SimpleNamespace, serve: object) -> None:
    serve(tiny.tmp / "nowhere")
    with pytest.raises(sl.DataError, match="Could not download .*T1.tsv.gz .*404"):
        sl.datasets.her2st("T1")


def test_offline_names_the_files_and_the_folder(tiny: SimpleNamespace, offline: None) -> None:
    folder = fill(tiny.tmp / "mine", [path for path in tiny.files if path.name == "T1.tsv.gz"])
    with pytest.raises(sl.DataError, match=r"Is this machine offline\?.*github.com/almaan/her2st") as caught:
        sl.datasets.her2st("T1", path=folder)
    message = str(caught.value)
    assert f"{tiny.cache / 'T1' / 'T1_selection.tsv'}  <-  data/ST-spotfiles/T1_selection.tsv" in message
    assert f"{tiny.cache / 'T1' / 'T1.png'}  <-  data/ST-imgs/T/T1/T1.png" in message
    # Of the file that is there nothing need be said.
    assert "ST-cnts" not in message
    assert "`path=`" in message
    assert stored(tiny.cache) == []


def test_real_section_downloads(
    shared_dir: Path, tmp_path: Path, serve: object, monkeypatch: pytest.MonkeyPatch, a1: SpatialData
) -> None:
    monkeypatch.delenv("SEALST_SHARED", raising=False)
    for source, name in SOURCES.items():
        target = tmp_path / "repository" / source
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to((shared_dir / "data" / "her2st" / "A1" / name).resolve())
    asked = serve(tmp_path / "repository")
    with sl.settings.override(cache_dir=tmp_path / "cache"):
        table = sl.datasets.her2st("A1").tables["table"]
    assert sorted(asked) == sorted(f"/{source}" for source in SOURCES)
    assert stored(tmp_path / "cache") == sorted(SOURCES.values())
    pd.testing.assert_frame_equal(table.obs, a1.tables["table"].obs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sl.datasets.her2st("Z9"), "`section` must be one of 'A1', 'B4', 'C2', 'C3', 'C4', 'C5', found 'Z9'"),
        (lambda: sl.datasets.her2st(["C2", "D1"]), "`section` must be one of 'A1', .*found 'D1'"),
        (lambda: sl.datasets.her2st_counts("A1"), "`section` must be one of 'D1', 'D4', .*found 'A1'"),
        (lambda: sl.datasets.her2st("C2", path="no-such-folder"), "`path` is no folder: '.*no-such-folder'"),
    ],
    ids=["unknown", "one of several", "with image", "path"],
)
def test_bad_input(call: object, message: str) -> None:
    with pytest.raises(sl.DataError, match=message):
        call()
