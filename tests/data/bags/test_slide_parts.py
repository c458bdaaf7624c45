"""What is kept of a slide while it is embedded."""

from __future__ import annotations

import os
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

import sealst as sl
from sealst._data.bags.parts import Parts, append_array, append_frame, file_digest, run_folder
from sealst._files import complete_file


@pytest.mark.parametrize("change", ["start", "end", "time", "size", "companion"])
def test_digest_of_a_slide(change: str, tmp_path: Path) -> None:
    path, folder = tmp_path / "a.mrxs", tmp_path / "a"
    folder.mkdir()
    (folder / "Data0001.dat").write_bytes(b"x" * 100)
    content = bytearray(np.random.default_rng(0).bytes(300_000))
    path.write_bytes(content)
    os.utime(path, (1e9, 1e9))
    before = file_digest(path)
    assert file_digest(path) == before
    if change in ("start", "end"):
        content[0 if change == "start" else -1] ^= 1
    path.write_bytes(content + b"x" * (change == "size"))
    os.utime(path, (1e9, 1e9 + (change == "time")))
    assert (file_digest(path) == before) is (change == "companion")
    if change == "companion":
        (folder / "Data0001.dat").write_bytes(b"x" * 101)
        assert file_digest(path) != before


def test_a_folder_beside_a_slide_does_not_count(tmp_path: Path) -> None:
    """As results that are named by it."""
    path = tmp_path / "a.tif"
    path.write_bytes(b"x")
    before = file_digest(path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "manifest.csv").write_text("slide")
    assert file_digest(path) == before
    assert file_digest(tmp_path / "a") != before


def test_digest_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(sl.DataError, match="No slide at"):
        file_digest(tmp_path / "a.svs")


def test_files_are_complete_or_absent(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(text: str, *, whole: bool) -> None:
        with complete_file(path) as partial:
            partial.write_text(text)
            if not whole:
                raise RuntimeError("cut off")

    with pytest.raises(RuntimeError, match="cut off"):
        write("new", whole=False)
    assert path.read_text() == "old"
    write("new", whole=True)
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_run_removes_its_own_files_and_those_of_killed_runs(tmp_path: Path) -> None:
    left = tmp_path / ".job-0123abcd"
    left.mkdir()
    (left / ".alive").touch()
    (left / "model").write_text("")
    with run_folder(tmp_path) as other:
        (other / "net").write_text("")
        with run_folder(tmp_path) as own:
            assert own != other
        assert not own.exists()
        assert (other / "net").exists()
        assert list(tmp_path.glob(".job-*")) == [other]
    assert not list(tmp_path.glob(".job-*"))


def parts_with(folder: Path, n: int, **arrays: np.ndarray) -> Parts:
    parts = Parts(folder / "slide" / "digest", 4)
    with parts.lock("plan") as planned:
        assert not planned
        parts.write_boxes(np.zeros((n, 4)))
        parts.tiles.touch()
    for start in parts.starts(n):
        parts.write(start, {key: values[start : start + 4] for key, values in arrays.items()})
    return parts


def test_table_on_disk_is_what_anndata_writes(tmp_path: Path) -> None:
    """Also with more columns than are gathered at a time, and a last range that is shorter."""
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(10, 5)).astype(np.float32), rng.normal(size=(10, 300)).astype(np.float32)
    parts = parts_with(tmp_path / "parts", 10, z=z, y=y)
    assert parts.starts(10) == [0, 4, 8]
    table = ad.AnnData(np.zeros((10, 0)), obs=pd.DataFrame(index=[f"t{i}" for i in range(10)]))
    table.write_h5ad(tmp_path / "ours.h5ad")
    genes = [f"g{i}" for i in range(300)]
    with h5py.File(tmp_path / "ours.h5ad", "r+") as file:
        append_array(file["obsm"], "z", parts, 10)
        append_frame(file["obsm"], "y", parts, names=table.obs_names.to_numpy(), columns=genes)
    table.obsm["z"], table.obsm["y"] = z, pd.DataFrame(y, index=table.obs_names, columns=genes)
    table.write_h5ad(tmp_path / "theirs.h5ad")
    ours, theirs = (ad.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("ours", "theirs"))
    np.testing.assert_array_equal(ours.obsm["z"], theirs.obsm["z"])
    pd.testing.assert_frame_equal(ours.obsm["y"], theirs.obsm["y"])


def test_locks_tell_whether_there_is_work(tmp_path: Path) -> None:
    parts = parts_with(tmp_path, 6, z=np.zeros((6, 2)))
    with parts.lock("0") as planned:
        assert planned
        assert parts.is_done(4)
        assert not parts.is_done(8)
    parts.remove()
    # Another process has finished the slide: nothing is left behind.
    with parts.lock("0") as planned:
        assert not planned
    assert not list(tmp_path.iterdir())
