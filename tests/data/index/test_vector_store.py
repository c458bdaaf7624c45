"""The folder of an index: it opens as it was before or after a change, whatever happens meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sealst._data.index.vectors import Snapshot, changing, check_target, open_store
from sealst._errors import CheckpointError, DataError

EMPTY = {"dim": 4, "kept": None, "faiss": None, "segments": [], "key": "X_seal", "made_by": {"model": "m"}}
EMPTY |= {"asked": "exact", "kind": "exact", "params": {}, "options": {}, "columns": [], "version": "0"}


def append(folder: Path, n: int, value: float, *, replace: bool = False) -> Snapshot:
    """Add a segment whose vectors, spots and means all hold one number."""
    with changing(folder, replace=replace) as change:
        before = None if replace else change.present
        spots = change.save_spots(pa.table({"value": [value] * n}))
        with change.vectors(4) as sink:
            for _ in range(n):
                sink.append(np.full((1, 4), value))
        segment = {"vectors": sink.name, "spots": spots, "n": n}
        segment |= {"means": change.save("means", np.full((1, 4), value)), "sections": [f"s{value}"]}
        config = EMPTY if before is None else before.config
        return change.commit(dict(config) | {"segments": [*config["segments"], segment]})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    append(tmp_path / "index", 3, 1.0, replace=True)
    return tmp_path / "index"


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name not in (".lock", "config.json")}


def test_what_is_written_is_read(folder: Path) -> None:
    append(folder, 2, 2.0)
    for mmap in (True, False):
        found = open_store(folder, mmap=mmap)
        assert found.vectors.shape == (5, 4)
        np.testing.assert_array_equal(found.vectors[:][:, 0], [1, 1, 1, 2, 2])
        assert found.spots["value"].to_pylist() == [1, 1, 1, 2, 2]
        np.testing.assert_array_equal(found.means[:, 0], [1, 2])
        assert found.sections == ["s1.0", "s2.0"]
    assert files(folder) == set(open_store(folder).files())


def test_a_change_that_fails_leaves_nothing(folder: Path) -> None:
    before = files(folder)
    with pytest.raises(ValueError, match="could not convert"):
        append(folder, 2, "x")  # type: ignore[arg-type]
    assert files(folder) == before
    assert len(open_store(folder).vectors) == 3


def test_leftovers_are_ignored_and_removed_later(folder: Path) -> None:
    left = folder / "vectors-000002-0123abcd.npy"
    left.write_bytes(b"half")
    (folder / ".config.json-0123abcd").mkdir()
    (folder / ".config.json-0123abcd" / ".alive").touch()
    (folder / ".config.json-0123abcd" / "config.json").write_text("{")
    (folder / "notes.txt").write_text("mine")
    assert len(open_store(folder).vectors) == 3
    append(folder, 1, 2.0)
    assert not left.exists()
    assert files(folder) == {*open_store(folder).files(), "notes.txt"}


def test_a_reader_keeps_its_state(folder: Path) -> None:
    reader = open_store(folder)
    append(folder, 7, 9.0, replace=True)
    np.testing.assert_array_equal(reader.vectors[:], 1)
    assert open_store(folder).vectors.shape == (7, 4)


def test_two_writers(folder: Path) -> None:
    with (
        changing(folder),
        pytest.raises(DataError, match=r"The index .* is in use by process \d+ on .* since .*Wait until it is done"),
        changing(folder),
    ):
        pass
    append(folder, 1, 2.0)


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_vector_store import append
from sealst._data.index.vectors import open_store
folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
random.seed(int(sys.argv[3]))
killed = grown = 0
for _ in range(rounds):
    before = len(open_store(folder).vectors)
    child = os.fork()
    if child == 0:
        try:
            append(folder, 5, 1.0 + before // 5)
        finally:
            os._exit(0)
    time.sleep(random.uniform(0, {longest}))
    os.kill(child, signal.SIGKILL)
    killed += os.waitpid(child, 0)[1] == signal.SIGKILL
    now = open_store(folder)
    n = len(now.vectors)
    assert n in (before, before + 5), (before, n)
    grown += n > before
    numbers = [1.0 + i // 5 for i in range(n)]
    assert now.vectors[:][:, 3].tolist() == numbers
    assert now.spots["value"].to_pylist() == numbers
    assert now.means[:, 0].tolist() == numbers[::5]
append(folder, 5, 1.0 + len(open_store(folder).vectors) // 5)
names = {{p.name for p in folder.iterdir()}} - {{".lock", "config.json"}}
assert names == set(open_store(folder).files()), names
print(killed, grown)
"""


@pytest.mark.skipif(not hasattr(sys, "getswitchinterval") or sys.platform == "win32", reason="needs fork")
def test_a_killed_writer_leaves_the_old_state_or_the_new(tmp_path: Path) -> None:
    append(tmp_path / "index", 5, 1.0, replace=True)
    code = KILLED.format(tests=str(Path(__file__).parent), longest=0.04)
    call = [sys.executable, "-c", code, str(tmp_path / "index"), "40", "0"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    killed, _ = map(int, done.stdout.split())
    assert killed > 5


@pytest.mark.parametrize("kind", ["vectors", "spots", "means"])
def test_damage_is_named(folder: Path, kind: str) -> None:
    path = next(folder.glob(f"{kind}-*"))
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    with pytest.raises(CheckpointError, match=rf"is damaged: {path.name} has {len(content) - 3:,} bytes, not"):
        open_store(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"is damaged: {path.name} is missing. Restore it"):
        open_store(folder)


def test_other_folders_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no index \(no config.json\). Build one"):
        open_store(tmp_path)
    with pytest.raises(CheckpointError, match=r"holds no index \(no config.json\)"), changing(tmp_path / "none"):
        pass
    with pytest.raises(CheckpointError, match="holds an index already; pass `overwrite=True`"):
        check_target(folder, overwrite=False)
    check_target(folder, overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is a file; name a folder"):
        check_target(tmp_path / "file", overwrite=True)
    with pytest.raises(CheckpointError, match="holds other files; name a new folder"):
        check_target(tmp_path, overwrite=True)
    (folder / "config.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(CheckpointError, match=r"`format` must be one of 'sealst-index-1', found 'other'"):
        check_target(folder, overwrite=True)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is damaged: it is no JSON"):
        open_store(folder)


def test_an_interrupted_build_may_be_started_again(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    folder.mkdir()
    (folder / "vectors-000001-0123abcd.npy").write_bytes(b"half")
    (folder / ".lock").touch()
    check_target(folder, overwrite=False)
    append(folder, 2, 4.0, replace=True)
    assert len(open_store(folder).vectors) == 2
