"""A save that was cut off is finished into the store that it began in, or not at all; nothing else is touched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import sealst as sl
from sealst.io._stores import saving
from sealst.io._stores import store as _store


def section(name: str, seed: int = 0):
    rng = np.random.default_rng(seed)
    return sl.io.from_arrays(
        rng.integers(0, 255, (60, 60, 3), dtype=np.uint8),
        rng.poisson(9.0, (4, 3)),
        np.array([[20.0, 20], [40, 20], [20, 40], [40, 40]]),
        genes=["EPCAM", "VIM", "CD3E"],
        mpp=1.0,
        spot_um=10,
        section=name,
        patient="p",
        organ="breast",
    )


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    for seed, name in enumerate(("a", "b")):
        # Both hold elements of the same names.
        section("a", seed).write(folder / f"{name}.zarr")
    return folder


@pytest.fixture
def store(originals, tmp_path):
    return Path(shutil.copytree(originals / "a.zarr", tmp_path / "a.zarr"))


def cut_off(store: Path, monkeypatch, *, after: int = 0, mark: float = 1.0) -> None:
    """Save a mark, and stop when so many elements were replaced."""
    sections = sl.io.Collection([store])
    s = sections[0]
    s.tables["table"].obs["mark"] = mark
    real, done = saving.exchange, []

    def stopping(a, b):
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(real(a, b))
        # Shapes come first, which stay the same, and then the table.
        if len(done) == 2 == after:
            raise KeyboardInterrupt
        return done[-1]

    with monkeypatch.context() as patch:
        patch.setattr(saving, "exchange", stopping)
        with pytest.raises(KeyboardInterrupt):
            sections.save(s)
    assert saving.is_unfinished(store)


def rewrite(store: Path, change) -> None:
    path = store / ".saving" / "list.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def snapshot(folder: Path) -> dict[str, bytes]:
    files = [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def obs(store: Path):
    return sl.io.read(store).tables["table"].obs


@pytest.mark.parametrize("after", [0, 1])
def test_the_store_carries_its_save_along(store, tmp_path, monkeypatch, after):
    cut_off(store, monkeypatch, after=after)
    moved = store.rename(tmp_path / "moved.zarr")
    assert obs(moved)["mark"].eq(1).all()
    assert not saving.is_unfinished(moved)


def test_a_save_is_not_finished_into_a_store_that_took_the_name(store, originals, monkeypatch):
    cut_off(store, monkeypatch)
    shutil.rmtree(store)
    shutil.copytree(originals / "b.zarr", store)
    assert "mark" not in obs(store)
    np.testing.assert_array_equal(
        sl.io.read(store).tables["table"].X.toarray(), sl.io.read(originals / "b.zarr").tables["table"].X.toarray()
    )


def test_a_save_is_not_finished_over_other_content(store, originals, monkeypatch):
    """Another section is copied over the folder, in which the save that was cut off still lies."""
    cut_off(store, monkeypatch, after=1)
    shutil.copytree(originals / "b.zarr", store, dirs_exist_ok=True)
    before = snapshot(store)
    with pytest.warns(sl.SealstWarning, match="was cut off, and is not finished: .* is neither what it was before"):
        assert "mark" not in obs(store)
    assert snapshot(store) == before
    sections = sl.io.Collection([store])
    with pytest.warns(sl.SealstWarning), pytest.raises(sl.DataError, match="Nothing is saved on top of it"):
        sections.save(sections[0])
    with pytest.raises(sl.DataError, match="cannot be finished: .*Pass `discard=True` to forget it"):
        sl.io.recover(store)
    sl.io.recover(store, discard=True)
    assert not list(store.glob(".saving"))
    assert "mark" not in obs(store)


def test_the_command_mends_or_says_why_not(store, originals, monkeypatch):
    from click.testing import CliRunner

    from sealst.cli._main import cli

    def called(*options: str) -> tuple[int, str]:
        done = CliRunner().invoke(cli, ["recover", str(store), *options])
        return done.exit_code, done.output

    cut_off(store, monkeypatch, after=1)
    code, said = called()
    assert (code, f"{store} is whole" in said) == (0, True)
    assert "mark" in obs(store)
    cut_off(store, monkeypatch, after=1)
    shutil.copytree(originals / "b.zarr", store, dirs_exist_ok=True)
    code, said = called()
    assert (code, "cannot be finished" in said) == (3, True)
    code, said = called("--discard")
    assert code == 0
    assert not list(store.glob(".saving"))
    shutil.rmtree(store)
    assert called()[0] == 3


@pytest.mark.parametrize(
    "key",
    ["../thesis", "tables/../../thesis", "tables/..", "tables/", "tables", "/thesis", "other/x", "tables/a/b", 3, None],
)
def test_names_that_lead_out_of_the_store_are_never_followed(store, tmp_path, monkeypatch, key):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text").write_text("years")
    cut_off(store, monkeypatch)
    rewrite(store, lambda content: content["steps"].append({"key": key, "old": None, "new": None}))
    before = snapshot(tmp_path)
    with pytest.warns(sl.SealstWarning, match="names .*, which is no element of a store|`steps.key` must be text"):
        sl.io.read(store)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("content", ["", "[]", '{"format": 1}', '{"format": 1, "steps": [{"a": 1}]}', "[" * 9999])
def test_a_list_that_is_none_is_reported(store, monkeypatch, content):
    cut_off(store, monkeypatch)
    (store / ".saving" / "list.json").write_text(content)
    with pytest.warns(sl.SealstWarning, match=r"list\.json' is damaged"):
        assert "mark" not in obs(store)


def test_links_are_not_followed(store, tmp_path, monkeypatch):
    """Neither of the folder of saves, nor of a kind of elements."""
    thesis = tmp_path / "thesis"
    (thesis / "new" / "tables").mkdir(parents=True)
    (thesis / "list.json").write_text('{"format": 1, "steps": []}')
    (store / ".saving").symlink_to(thesis)
    before = snapshot(thesis)
    sections = sl.io.Collection([store])
    s = sections[0]
    sections.save(s)
    assert snapshot(thesis) == before
    assert not (store / ".saving").exists()
    (store / "shapes").rename(tmp_path / "shapes")
    (store / "shapes").symlink_to(tmp_path / "shapes")
    with pytest.raises(sl.DataError, match="'shapes' of 'a.zarr' is a link to .*elements are replaced in the store"):
        sections.save(s)


def test_who_may_not_write_reads_what_was_there_before(store, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    cut_off(store, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(_store.saving, "finish", refused)
        with pytest.warns(sl.SealstWarning, match="cannot be written to .*Have its owner call `sl.io.recover"):
            assert "mark" not in obs(store)
    sl.io.recover(store)
    assert obs(store)["mark"].eq(1).all()
    cut_off(store, monkeypatch, after=2, mark=2.0)
    with monkeypatch.context() as patch:
        patch.setattr(_store.saving, "finish", refused)
        with pytest.raises(sl.DataError, match="until then it is partly old and partly new"):
            sl.io.read(store)


def test_a_store_is_saved_through_a_link(store, tmp_path):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "here.zarr").symlink_to(store)
    sections = sl.io.Collection([tmp_path / "links" / "here.zarr"])
    s = sections[0]
    s.tables["table"].obs["mark"] = 2.0
    sections.save(s)
    assert obs(store)["mark"].eq(2).all()
    assert (tmp_path / "links" / "here.zarr").is_symlink()


def test_what_was_moved_aside_has_its_name_again(store, tmp_path):
    """As a process leaves it that was killed where names cannot be exchanged."""
    left = tmp_path / ".a.zarr-0123abcd"
    left.mkdir()
    (left / ".alive").touch()
    store.rename(left / ".replaced")
    assert obs(store).shape[0] == 4
    sl.io.recover(store)
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == ["a.zarr"]
    with pytest.raises(sl.DataError, match="Nothing at .*nothing beside it that a killed process left"):
        sl.io.recover(tmp_path / "b.zarr")
