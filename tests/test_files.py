"""Files and folders appear complete or not at all."""

from __future__ import annotations

import os
import stat

import pytest

from sealst import _files
from sealst._errors import CheckpointError, DataError, InUseError
from sealst._files import check_plain, complete_file, new_folder, visible, write_json, write_text


@pytest.mark.parametrize("sync", [False, True])
def test_a_file_is_the_old_one_or_the_new_one(tmp_path, sync):
    path = tmp_path / "a.txt"
    write_text(path, "old", sync=sync)

    def half() -> None:
        with complete_file(path, sync=sync) as partial:
            assert (partial.parent.parent, partial.name) == (path.parent, path.name)
            partial.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        half()
    assert path.read_text() == "old"
    write_json(path, {"a": 1}, sync=sync)
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_files_have_the_rights_of_others_beside_them(tmp_path):
    write_text(tmp_path / "ours.txt", "x")
    (tmp_path / "plain.txt").write_text("x")
    ours, plain = ((tmp_path / f"{name}.txt").stat().st_mode for name in ("ours", "plain"))
    assert stat.S_IMODE(ours) == stat.S_IMODE(plain)


def test_a_folder_is_replaced_only_where_it_is_of_the_kind_and_only_when_complete(tmp_path):
    path = tmp_path / "run"
    with new_folder(path, overwrite=False, marker="m") as work:
        (work / "m").write_text("1")
    with (
        pytest.raises(CheckpointError, match="exists; pass `overwrite=True`"),
        new_folder(path, overwrite=False, marker="m"),
    ):
        pass
    with pytest.raises(CheckpointError, match="holds something else"), new_folder(path, overwrite=True, marker="n"):
        pass

    def half() -> None:
        with new_folder(path, overwrite=True, marker="m") as work:
            (work / "m").write_text("2")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert (path / "m").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def write(path, text, **options):
    with new_folder(path, marker="m", **options) as work:
        for name in ("m", text):
            (work / name).write_text(text)


@pytest.mark.parametrize("other", ["folder", "file"])
def test_of_two_that_write_one_new_folder_the_second_is_refused(tmp_path, other):
    path = tmp_path / "m"

    def second() -> None:
        with new_folder(path, overwrite=False, marker="m") as work:
            (work / "m").write_text("second")
            # The first was begun earlier or later, and is done now.
            write(path, "first", overwrite=False) if other == "folder" else path.write_text("first")

    with pytest.raises(InUseError, match=r"Another process wrote or removed '.*m' meanwhile"):
        second()
    assert {p.read_text() for p in (path.iterdir() if other == "folder" else [path])} == {"first"}
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("exchanging", [True, False])
def test_of_two_that_replace_one_folder_the_second_replaces_it_whole(tmp_path, monkeypatch, exchanging):
    if not exchanging:
        monkeypatch.setattr(_files, "exchange", lambda a, b: False)
    path = tmp_path / "m"
    with new_folder(path, overwrite=True, marker="m") as work:
        (work / "m").write_text("second")
        write(path, "first", overwrite=True)
    assert {p.name: p.read_text() for p in path.iterdir()} == {"m": "second"}
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_what_took_the_name_meanwhile_is_replaced_only_where_it_is_of_the_kind(tmp_path):
    path = tmp_path / "m"

    def ours() -> None:
        with new_folder(path, overwrite=True, marker="m") as work:
            (work / "m").write_text("ours")
            path.mkdir()
            (path / "thesis").write_text("years")

    with pytest.raises(CheckpointError, match="holds something else"):
        ours()
    assert [p.name for p in path.iterdir()] == ["thesis"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes and devices of Unix")
def test_devices_and_pipes_are_not_visible(tmp_path):
    """Reading one may never end."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "._file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "zero").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    assert list(visible(tmp_path)) == ["file", "folder", "link"]
    check_plain(tmp_path / "link")
    for name in ("folder", "pipe", "zero"):
        with pytest.raises(DataError, match=f"/{name}' is no plain file, but a folder, a device or a pipe"):
            check_plain(tmp_path / name)
