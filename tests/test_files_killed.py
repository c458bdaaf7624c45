"""Killed at any event of a file: the old or the new result has the name, and the next call leaves nothing else."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import dask
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import torch

import sealst as sl
from sealst import SealstError, _files
from sealst._data.crops.cache import CropCache, write_cache
from sealst._files import complete_file, new_folder, put_back, scratch, write_text
from sealst.models import CropSpec, GeneMLPParams, HeadParams, LoraParams, SealModel, build_encoder

_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree"}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


def killed_at(n: int, work: Callable[[], object], root: Path) -> bool:
    """Run in a child that is killed before its n-th change below a folder; whether it was."""
    return events(work, root, kill=n)[1]


def events(work: Callable[[], object], root: Path, *, kill: int = 0) -> tuple[int, bool]:
    """Run in a child, which is killed before a change below a folder; how many it made, and whether it was killed."""
    told = os.pipe()
    pid = os.fork()
    if pid == 0:
        seen = 0

        def watch(event: str, args: tuple[object, ...]) -> None:
            nonlocal seen
            if event not in _EVENTS or not str(args[0]).startswith(str(root)):
                return
            if event == "open" and not int(str(args[2])) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
            seen += 1
            if seen == kill:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        # A child has none of the threads of its parent's pools, and would wait for them.
        torch.set_num_threads(1)
        dask.config.set(scheduler="synchronous")
        said = ""
        try:
            work()
            said = str(seen)
        except BaseException:  # noqa: BLE001  the test shows it
            said = traceback.format_exc()
        finally:
            os.write(told[1], said.encode())
            os._exit(0)
    os.close(told[1])
    with os.fdopen(told[0]) as answer:
        said = answer.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == -signal.SIGKILL or (code == 0 and said.isdigit()), said or code
    return int(said or 0), code != 0


def write_folder(path: Path, text: str) -> None:
    with new_folder(path, overwrite=True, marker="m") as work:
        for name in ("m", "a", "sub/b"):
            (work / name).parent.mkdir(exist_ok=True)
            (work / name).write_text(text)


def texts(path: Path) -> set[str]:
    return {p.read_text() for p in path.rglob("*") if p.is_file()}


@pytest.mark.parametrize("exchanging", [True, False])
def test_a_folder_is_the_old_or_the_new_one_wherever_its_process_is_killed(tmp_path, monkeypatch, exchanging):
    if not exchanging:
        monkeypatch.setattr(_files, "exchange", lambda a, b: False)
    path, found, n = tmp_path / "m", [], 1
    while True:
        write_folder(path, "old")
        was_killed = killed_at(n, lambda: write_folder(path, "new"), tmp_path)
        # What opens a folder does first.
        assert path.exists() or not exchanging
        put_back(path)
        assert texts(path) in ({"old"}, {"new"}), n
        found += texts(path)
        write_folder(path, "next")
        assert [p.name for p in tmp_path.iterdir()] == ["m"], n
        if not was_killed:
            break
        n += 1
    assert n > 8
    assert found[0] == "old"
    assert found[-1] == "new"


def test_a_file_is_the_old_or_the_new_one_wherever_its_process_is_killed(tmp_path):
    path, n = tmp_path / "a.txt", 1
    while True:
        write_text(path, "old")
        was_killed = killed_at(n, lambda: write_text(path, "new", sync=True), tmp_path)
        assert path.read_text() in ("old", "new")
        write_text(path, "next")
        assert [p.name for p in tmp_path.iterdir()] == ["a.txt"], n
        if not was_killed:
            break
        n += 1
    assert n > 4


def test_what_a_living_process_writes_is_not_swept(tmp_path):
    path = tmp_path / "a.txt"
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        with complete_file(path) as partial:
            partial.write_text("theirs")
            os.write(ready[1], b"x")
            os.read(go[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    write_text(path, "ours")
    assert len(list(tmp_path.iterdir())) == 2
    os.write(go[1], b"x")
    os.waitpid(pid, 0)
    assert path.read_text() == "theirs"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("at", ["locked", "cleared"])
def test_a_folder_may_go_with_its_process_while_it_is_swept(tmp_path, monkeypatch, at):
    """A process that ends gives its lock back before it removes the empty folder: another one can hold it by then."""
    path, theirs = tmp_path / "m", tmp_path / ".m-00000001"
    theirs.mkdir()
    (theirs / ".alive").touch()
    clear, gone = _files._clear, []

    def going(folder: Path, of: Path) -> None:
        if folder == theirs and at == "cleared":
            clear(folder, of)
        if folder == theirs:
            shutil.rmtree(folder)
            gone.append(folder)
        if folder != theirs or at == "locked":
            clear(folder, of)

    monkeypatch.setattr(_files, "_clear", going)
    write_folder(path, "new")
    assert gone == [theirs]
    assert texts(path) == {"new"}
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True])
def test_two_processes_never_mix_their_folders(tmp_path, overwrite):
    path, count = tmp_path / "m", 40
    for round_ in range(20):
        start, pids = os.pipe(), []
        for text in ("a", "b"):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    os.close(start[1])
                    os.read(start[0], 1)
                    with new_folder(path, overwrite=overwrite, marker="m") as work:
                        for name in ("m", *map(str, range(count))):
                            (work / name).write_text(text)
                    code = 0
                except SealstError:
                    code = 3
                finally:
                    os._exit(code)
            pids.append(pid)
        os.close(start[0])
        os.close(start[1])
        codes = sorted(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids)
        assert codes == [0, 3] or (overwrite and codes == [0, 0]), round_
        assert len(list(path.iterdir())) == count + 1
        assert len(texts(path)) == 1
        # Of two that end in one moment either may leave its empty folder to the next call.
        _files.sweep(path)
        assert [p.name for p in tmp_path.iterdir()] == ["m"]
        shutil.rmtree(path)


def test_what_is_not_ours_is_not_swept(tmp_path):
    """Folders of such names without a lock, locks that are links, and links to folders."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").write_text("years")
    for name in (".a-00000001", ".a-00000002"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()
    (tmp_path / ".a-00000002" / ".alive").symlink_to(tmp_path / "thesis" / "text")
    (tmp_path / ".a-00000003").symlink_to(tmp_path / "thesis")
    (tmp_path / ".a-00000004").mkdir()
    (tmp_path / ".ab-00000001").mkdir()
    (tmp_path / ".ab-00000001" / ".alive").touch()
    write_text(tmp_path / "a", "x")
    # An empty one is what a process leaves that is killed between making it and locking it.
    left = [".a-00000001", ".a-00000002", ".a-00000003", ".ab-00000001", "a", "thesis"]
    assert sorted(p.name for p in tmp_path.iterdir()) == left
    assert (tmp_path / "thesis" / "text").read_text() == "years"


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0o002, 0o664, 0o775)]
)
def test_rights_follow_the_umask(tmp_path, umask, file, folder):
    before = os.umask(umask)
    try:
        with new_folder(tmp_path / "m", overwrite=False, marker="w") as work:
            # As libraries for weights write.
            (work / "w").touch(mode=0o600)
            (work / "sub").mkdir(mode=0o700)
            (work / "sub" / "x").touch()
        with complete_file(tmp_path / "f") as partial:
            partial.touch(mode=0o600)
        with scratch(tmp_path / "job") as other:
            assert stat.S_IMODE(other.stat().st_mode) == folder
    finally:
        os.umask(before)
    modes = {p.relative_to(tmp_path).as_posix(): stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*")}
    assert modes == {"m": folder, "m/w": file, "m/sub": folder, "m/sub/x": file, "f": file}


def test_links_are_written_through(tmp_path):
    (tmp_path / "disk").mkdir()
    for name in ("m", "f"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    write_folder(tmp_path / "m", "1")
    write_folder(tmp_path / "m", "2")
    write_text(tmp_path / "f", "3")
    assert (tmp_path / "m").is_symlink()
    assert (tmp_path / "f").is_symlink()
    assert texts(tmp_path / "disk" / "m") == {"2"}
    assert (tmp_path / "disk" / "f").read_text() == "3"
    assert sorted(p.name for p in (tmp_path / "disk").iterdir()) == ["f", "m"]


def test_a_folder_that_fails_leaves_the_old_one_where_names_cannot_be_exchanged(tmp_path, monkeypatch):
    path = tmp_path / "m"
    write_folder(path, "old")
    monkeypatch.setattr(_files, "exchange", lambda a, b: False)
    real = Path.rename

    def failing(self, target):
        if Path(target) == path and self.name == "m":
            raise OSError(5, "Input/output error")
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        with pytest.raises(OSError, match="(?i)input/output"):
            write_folder(path, "new")
    assert texts(path) == {"old"}
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


# -- what users call --------------------------------------------------------------------------------------------------
class Replaced(NamedTuple):
    """A call that changes a result in a folder."""

    #: writes the result of before
    before: Callable[[Path], object]
    #: changes it
    call: Callable[[Path], object]
    #: what is found under the name, and lies there
    state: Callable[[Path], object]


def spots(name: str, n: int = 12) -> ad.AnnData:
    """Table with embeddings."""
    rng = np.random.default_rng([*name.encode()])
    facts = {"section": name, "patient": "p", "organ": "breast", "technology": "toy"}
    table = ad.AnnData(np.zeros((n, 1), np.float32), obs=pd.DataFrame(facts, index=[f"{name}{i}" for i in range(n)]))
    table.obsm["X_seal"] = rng.normal(size=(n, 8)).astype(np.float32)
    table.obsm["spatial"] = rng.uniform(0, 900, (n, 2))
    crops = {"crop_um": 64.0, "crop_px": 32, "um_per_unit": 0.5, "shapes_key": "x"}
    crops |= {"image_key": "he", "coordinate_system": "global", "min_inside": 0.5}
    made_by = {"model": "m", "modality": "image", "crops": {f"{name}_spots": dict(crops)}}
    table.uns["sealst"] = {"crops": {f"{name}_spots": crops}, "embed": {"X_seal": made_by}}
    return table


def of_index(change: Callable[[sl.tl.SealIndex], object]) -> Replaced:
    def before(path: Path) -> None:
        sl.tl.build_index([spots("a"), spots("b")], path)
        sl.tl.SealIndex.load(path).delete(where={"obs_name": "a3"})

    def state(path: Path) -> object:
        index = sl.tl.SealIndex.load(path)
        return len(index), index.n_deleted, index.sections

    return Replaced(before, lambda path: change(sl.tl.SealIndex.load(path)), state)


def added(index: sl.tl.SealIndex) -> None:
    if "c" in index.sections:
        index.delete(where={"obs_name": "c1"})
    else:
        index.add([spots("c")])


def of_model(section: Callable[..., Any]) -> Replaced:
    panel = sl.pp.select_genes(prepared(section(), 32), 8)
    model = SealModel(
        build_encoder("test_vit", pretrained=False), panel, crop=CropSpec(32.0, 16), adapter=LoraParams(n_blocks=1),
        gene_encoder=GeneMLPParams(hidden=(8,)), head=HeadParams(8),
    )  # fmt: skip

    def changed(path: Path) -> None:
        with torch.no_grad():
            next(model.image_head.parameters()).add_(1)
        model.save(path, overwrite=True)

    return Replaced(model.save, changed, lambda path: sl.models.load(path, device="cpu").fingerprint)


def prepared(section: Any, crop_um: float) -> Any:
    sl.pp.pair_crops(section, crop_um=crop_um, crop_px=16)
    sl.pp.normalize(section)
    section.tables["table"].obs["size"] = crop_um
    return section


def sizes(path: Path) -> object:
    """What the table and the shapes of a store say, which are replaced together."""
    section = sl.io.read(path)
    (crops,) = (shapes for name, shapes in section.shapes.items() if name.endswith("_crops"))
    return section.tables["table"].obs["size"].unique().tolist(), round(float(crops.area.max()), 3)


def of_store(section: Callable[..., Any]) -> Replaced:
    new = prepared(section(), 40)
    return Replaced(
        lambda path: sl.io.write_wsi(prepared(section(), 32), path, pixels=True),
        lambda path: sl.io.write_wsi(new, path, pixels=True, overwrite=True),
        sizes,
    )


def of_collection(section: Callable[..., Any]) -> Replaced:
    def change(path: Path) -> None:
        sections = sl.io.Collection([path])
        section = sections[0]
        # Not normalised again: the parallel loops of that end a forked process.
        sl.pp.pair_crops(section, crop_um=40, crop_px=16)
        section.tables["table"].obs["size"] = 40
        sections.save(section)

    return Replaced(lambda path: prepared(section(), 32).write(path), change, sizes)


def of_crops(_: Callable[..., Any]) -> Replaced:
    """Crops of two pictures at the same places."""
    old, new = (np.random.default_rng(seed).integers(0, 255, (3, 200, 200), np.uint8) for seed in (0, 1))
    corners = np.random.default_rng(2).uniform(0, 160, (20, 2))
    squares = np.hstack([corners, corners + 40])

    def write(path: Path, image: np.ndarray) -> None:
        write_cache(path, [da.from_array(image, chunks=(3, 100, 100))], squares, 16, overwrite=True)

    def state(path: Path) -> object:
        return int(CropCache(path).read(np.arange(len(squares))).sum())

    return Replaced(lambda path: write(path, old), lambda path: write(path, new), state)


CALLS: dict[str, Callable[[Callable[..., Any]], Replaced]] = {
    "SealModel.save": of_model,
    "write_wsi": of_store,
    "Collection.save": of_collection,
    "pp.cache_crops": of_crops,
    "build_index": lambda _: of_index(lambda index: sl.tl.build_index([spots("c")], index.path, overwrite=True)),
    "SealIndex.add": lambda _: of_index(added),
    "SealIndex.delete": lambda _: of_index(lambda index: index.delete(where={"section": "b"})),
    "SealIndex.compact": lambda _: of_index(lambda index: index.compact()),
}
#: events of a long call that are tried: some while all is written aside, and all at its end
_SPREAD, _LAST = 5, 20


@pytest.fixture
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("name", list(CALLS))
def test_a_result_is_the_old_or_the_new_one_wherever_a_call_is_killed(tmp_path, toy_section, name):
    before, call, state = CALLS[name](lambda: toy_section(n=4))
    kept, root = tmp_path / "kept", tmp_path / "work"
    path = root / "r.zarr"
    before(kept)

    def restore() -> None:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        shutil.copytree(kept, path)

    restore()
    old, count = state(path), events(lambda: call(path), root)[0]
    new, lies = state(path), names_of(root)
    assert old != new
    assert count > 10
    found = []
    for n in sorted({*np.linspace(1, count, _SPREAD, dtype=int), *range(max(1, count - _LAST), count + 1)}):
        restore()
        # zarr's threads make a few events more or less.
        assert killed_at(int(n), lambda: call(path), root) or n > count - 10
        assert path.exists(), n
        assert (at := state(path)) in (old, new), n
        found.append(at)
        # The next call on that name.
        assert not events(lambda: call(path), root)[1]
        assert names_of(root) == lies, n
    assert found[0] == old
    assert found[-1] == new


def names_of(root: Path) -> set[str]:
    """Paths of all files and folders, without what is drawn at random in them."""
    return {re.sub(r"\d{6}-[0-9a-f]{8}", "*", p.relative_to(root).as_posix()) for p in root.rglob("*")}
