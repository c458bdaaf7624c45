"""What the operating system refuses is said in one line that names the path and what to do."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import sealst as sl
from sealst._files import complete_file, new_folder, write_text
from sealst._system.refusals import refusal


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/data/x"),
            "'/data/x': permission denied. Name a place that",
        ),
        (OSError(errno.ENOSPC, "No space", "/x"), r"'/x': the disk is full \(\d+ MiB are free\). Make room"),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "y" * 300),
            "the name is too long. Most file systems allow 255",
        ),
        (OSError(errno.EROFS, "Read-only file system", b"/cd"), "'/cd': the file system is read-only"),
        (
            FileNotFoundError(2, "No such file", "/x"),
            "'/x': no such file or folder. Correct the path; what stood there",
        ),
        (
            OSError("Can't write data (file write failed: name = '/a.h5ad', errno = 28, error message"),
            "'/a.h5ad': the disk",
        ),
        (
            RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "A file: the disk is",
        ),
        (
            MemoryError("Unable to allocate 7.45 TiB"),
            r"not enough memory \(Unable to allocate 7.45 TiB\). A file may state",
        ),
    ],
)
def test_each_has_its_words(error, said):
    told = refusal(error)
    assert isinstance(told, sl.SealstError)
    assert "\n" not in str(told)
    with pytest.raises(sl.SealstError, match=said):
        raise told


@pytest.mark.parametrize(
    "error", [FileExistsError(17, "File exists", "x"), ValueError("errno of the heart"), KeyError(13)]
)
def test_others_stay_what_they_are(error):
    assert refusal(error) is None


def test_the_path_that_was_asked_for_is_named(tmp_path):
    """Not the hidden one that is written first, also from a folder in a folder."""

    def write() -> None:
        with new_folder(tmp_path / "model", overwrite=False, marker="m") as work, complete_file(work / "m") as partial:
            raise OSError(errno.ENOSPC, "No space left on device", str(partial))

    with pytest.raises(sl.StorageError, match=r"/model': the disk is full") as caught:
        write()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "model"))
    assert not list(tmp_path.iterdir())

    def read() -> None:
        with complete_file(tmp_path / "x"):
            raise PermissionError(errno.EACCES, "Permission denied", "/data/theirs")

    with pytest.raises(sl.StorageError, match="'/data/theirs': permission denied"):
        read()


def test_whatever_is_called_says_it(tmp_path, toy_section, monkeypatch):
    """Functions and methods of every part of the package, by one mechanism."""
    long = tmp_path / ("n" * 300)
    with pytest.raises(sl.StorageError, match="the name is too long"):
        sl.io.read(long)
    with pytest.raises(sl.StorageError, match="the name is too long"):
        sl.io.Collection([toy_section()]).write(long)
    with pytest.raises(sl.StorageError, match="the name is too long"):
        sl.models.load(long)
    with pytest.raises(sl.StorageError, match="the name is too long"):
        sl.tl.SealIndex.load(long)
    with pytest.raises(
        sl.DataError, match="'~nobody_of_that_name/x': this machine knows no home of '~nobody_of_that_name'"
    ):
        sl.io.read("~nobody_of_that_name/x")

    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", "/data/x")

    monkeypatch.setattr(Path, "is_file", refused)
    for call in (sl.io.open_image, sl.models.load_slide):
        with pytest.raises(sl.StorageError, match="'/data/x': permission denied"):
            call(tmp_path / "x")


def test_an_error_without_a_path_is_about_what_was_asked_for(tmp_path, toy_section, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("sealst.io._stores.collection.write_whole", full)
    with pytest.raises(sl.StorageError, match="/stores': the disk is full"):
        sl.io.Collection([toy_section()]).write(tmp_path / "stores")


def test_what_vanishes_is_named(tmp_path, toy_section):
    """From deep inside, as Python's own error and as ours."""
    sections = sl.io.Collection([toy_section()]).write(tmp_path / "stores")
    section = sections[0]
    shutil.rmtree(tmp_path / "stores")
    with pytest.raises(sl.StorageError, match=r"/stores/.*': no such file or folder\. Correct the path") as caught:
        sections.save(section)
    assert isinstance(caught.value, FileNotFoundError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s: sl.pp.pair_crops(s, region=5), "`region` must be text or a list, found 5"),
        (lambda s: sl.pp.pair_crops(s, coordinate_system=["um"]), r"`coordinate_system` must be text, found \['um'\]"),
        (lambda s: sl.pp.quality(s, thresholds=[1]), "`thresholds` must be a mapping, found"),
        (lambda s: sl.pp.normalize(s, table_key=np.ones(2)), r"`table_key` must be text, found array\(\[1., 1.\]\)"),
        (
            lambda s: sl.pp.normalize(s, context_weight="half"),
            "`context_weight` must lie between 0 and 1, found",
        ),
        (lambda s: sl.io.read_visium(None), "`path` must be a path, found NoneType"),
        (lambda s: sl.io.Collection([s]).subset(7), "`names` must be a list, found 7"),
    ],
)
def test_an_argument_of_another_type_is_named(toy_section, call, said):
    """By the signature, where it made Python or a library fail."""
    with pytest.raises((sl.DataError, TypeError), match=said) as caught:
        call(toy_section())
    assert "\n" not in str(caught.value)


def test_arguments_that_work_are_not_looked_at(toy_section):
    section = toy_section()
    sl.pp.pair_crops(section, crop_um=np.array([32.0, 64.0]), crop_px=np.int64(16), region=pd.Index(["toy_spots"]))
    sl.pp.normalize(section, context=1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'crop_mm'"):
        sl.pp.pair_crops(section, crop_mm=3)


def test_what_is_wrapped_is_found_again_by_its_name():
    for call in (sl.io.read, sl.pp.tile, sl.tl.embed, sl.pl.crops, sl.datasets.synthetic, sl.models.load):
        assert pickle.loads(pickle.dumps(call)) is call


def test_a_picture_of_a_forged_size_is_refused(tmp_path, monkeypatch):
    Image.fromarray(np.full((20, 20, 3), 200, np.uint8)).save(tmp_path / "a.png")

    def too_much(*_, **__):
        raise MemoryError("Unable to allocate 7.45 TiB")

    monkeypatch.setattr("sealst.io._images.files.read_picture", too_much)
    with pytest.raises(
        sl.DataError, match=r"a.png: a picture of the size that the file states does not fit into memory"
    ):
        sl.io.open_image(tmp_path / "a.png")


@pytest.mark.skipif(not hasattr(os, "setuid") or os.getuid() != 0, reason="another user is needed")
def test_another_user_is_told():
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    write_text(folder / "read me", "x")
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            (folder / "read me").read_text()
            write_text(folder / "mine", "x")
        except sl.StorageError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    said = os.read(reading, 1000).decode()
    assert said.startswith(f"'{folder}/mine': permission denied. Name a place that is yours")
    assert [p.name for p in folder.iterdir()] == ["read me"]
    shutil.rmtree(folder)
