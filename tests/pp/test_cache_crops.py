from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import zarr

import sealst as sl
from sealst import _section
from sealst._data.crops import cache as crop_cache
from sealst._data.crops.cache import CachedRows, CropCache, write_cache
from sealst._data.crops.reader import read_crops
from sealst._data.crops.source import CropSource, gather_crops, iter_source
from sealst._data.stacked import Stacked
from sealst._errors import SealstWarning


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(crop_cache, "_SHARD", 16)
    monkeypatch.setattr(crop_cache, "_INNER", 4)


def image(seed: int = 0, size: int = 500) -> da.Array:
    return da.from_array(np.random.default_rng(seed).integers(0, 255, (3, size, size), np.uint8), chunks=(3, 128, 128))


def boxes(n: int = 50, seed: int = 1, side: float = 40.0) -> np.ndarray:
    corners = np.random.default_rng(seed).uniform(-10, 470, (n, 2))
    return np.hstack([corners, corners + side])


def store_of(sdata) -> Path:
    return Path(sdata.tables["table"].uns["sealst"]["crop_caches"]["toy_spots"]["112"])


def test_the_store_holds_just_what_the_image_gives(tmp_path, small_shards):
    level, squares = image(), boxes()
    cache = write_cache(tmp_path / "c.zarr", [level], squares, 20)
    fresh = read_crops([level], squares, 20)
    np.testing.assert_array_equal(cache.read(cache.slots(squares)), fresh)
    source = CropSource([level], squares, str(tmp_path / "c.zarr"))
    seen = np.empty_like(fresh)
    for positions, crops in iter_source(source, 20, batch_size=7):
        seen[positions] = crops
    np.testing.assert_array_equal(seen, fresh)


def test_a_subset_of_spots_uses_the_store_of_all(tmp_path, small_shards):
    level, squares = image(), boxes()
    write_cache(tmp_path / "c.zarr", [level], squares, 20)
    some = squares[[40, 3, 17]]
    with warnings.catch_warnings():
        warnings.simplefilter("error", SealstWarning)
        crops = gather_crops([CropSource([level], some, str(tmp_path / "c.zarr"))], 20, tmp_path)
    np.testing.assert_array_equal(crops, read_crops([level], some, 20))


def test_cached_crops_index_like_an_array(tmp_path, small_shards):
    parts = []
    for i in range(2):
        level, squares = image(i), boxes(20 + i, seed=i)
        cache = write_cache(tmp_path / f"{i}.zarr", [level], squares, 20)
        parts.append((cache, cache.slots(squares), read_crops([level], squares, 20)))
    crops = Stacked([CachedRows(*p[:2]) for p in parts], (20, 20, 3), np.dtype(np.uint8))
    whole = np.concatenate([p[2] for p in parts])
    assert crops.shape == whole.shape
    assert crops.dtype == whole.dtype
    rows = np.random.default_rng(0).permutation(len(whole))[:15]
    np.testing.assert_array_equal(crops[rows], whole[rows])
    np.testing.assert_array_equal(crops[10:30], whole[10:30])


def test_large_cached_collections_are_not_copied(tmp_path, small_shards, monkeypatch):
    monkeypatch.setattr("sealst._data.crops.source.MAX_RAM_BYTES", 1000)
    level, squares = image(), boxes()
    write_cache(tmp_path / "c.zarr", [level], squares, 20)
    crops = gather_crops([CropSource([level], squares, str(tmp_path / "c.zarr"))], 20, tmp_path)
    assert isinstance(crops, Stacked)
    assert not (tmp_path / "crops.npy").exists()
    np.testing.assert_array_equal(crops[np.arange(50)], read_crops([level], squares, 20))


def interrupted(tmp_path, level, squares) -> Path:
    """A store whose writer was stopped after two shards."""
    path, calls = tmp_path / "c.zarr", []

    def stopping(levels, some, px, *, batch_size):
        for batch in crop_cache_iter(levels, some, px, batch_size=batch_size):
            if len(calls) == 2:
                raise KeyboardInterrupt
            calls.append(1)
            yield batch

    crop_cache_iter = crop_cache.iter_crops
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crop_cache, "iter_crops", stopping)
        with pytest.raises(KeyboardInterrupt):
            write_cache(path, [level], squares, 20)
    return path


def test_an_interrupted_run_is_continued(tmp_path, small_shards):
    level, squares = image(), boxes()
    path = interrupted(tmp_path, level, squares)
    assert not path.exists()
    with pytest.raises(sl.DataError, match="are incomplete"):
        CropCache(tmp_path / ".c.zarr.part")
    shards = sorted((tmp_path / ".c.zarr.part").glob("crops/c/*/0/0/0"))
    assert len(shards) == 2
    before = [s.stat().st_mtime_ns for s in shards]
    cache = write_cache(path, [level], squares, 20)
    assert [s.stat().st_mtime_ns for s in sorted(path.glob("crops/c/*/0/0/0"))[:2]] == before
    np.testing.assert_array_equal(cache.read(cache.slots(squares)), read_crops([level], squares, 20))


def test_what_a_killed_process_left_of_kept_crops(tmp_path, small_shards):
    """Half files, a store that was replaced already, one that was moved aside, and a link where crops are collected."""
    level, squares = image(), boxes()
    path = interrupted(tmp_path, level, squares)
    part = tmp_path / ".c.zarr.part"
    (part / "crops" / "zarr.0123.partial").touch()
    write_cache(path, [level], squares, 20)
    assert not list(path.rglob("*.partial"))
    shutil.copytree(path, part)
    write_cache(path, [level], squares, 20)
    left = tmp_path / ".c.zarr-0123abcd"
    left.mkdir()
    (left / ".alive").touch()
    path.rename(left / ".replaced")
    assert len(CropCache(path).boxes) == len(squares)
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "text").write_text("years")
    part.symlink_to(thesis)
    write_cache(path, [level], squares[::-1][:5], 20, overwrite=True)
    other = interrupted(tmp_path / "other", level, squares).with_name(".c.zarr.part")
    shutil.rmtree(other / "crops" / "c")
    (other / "crops" / "c").symlink_to(thesis)
    write_cache(tmp_path / "other" / "c.zarr", [level], squares, 20)
    shutil.rmtree(tmp_path / "other")
    assert [p.name for p in thesis.iterdir()] == ["text"]
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".lock") == ["c.zarr", "thesis"]


def test_a_damaged_shard_of_an_interrupted_run_is_written_again(tmp_path, small_shards):
    level, squares = image(), boxes()
    path = interrupted(tmp_path, level, squares)
    shard = tmp_path / ".c.zarr.part" / "crops" / "c" / "0" / "0" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    cache = write_cache(path, [level], squares, 20)
    np.testing.assert_array_equal(cache.read(cache.slots(squares)), read_crops([level], squares, 20))


def test_crops_of_another_image_are_not_continued(tmp_path, small_shards):
    squares = boxes()
    path = interrupted(tmp_path, image(0), squares)
    cache = write_cache(path, [image(1)], squares, 20)
    np.testing.assert_array_equal(cache.read(cache.slots(squares)), read_crops([image(1)], squares, 20))


def test_a_black_crop_is_kept_and_a_lost_file_is_noticed(tmp_path, small_shards):
    level, squares = da.zeros((3, 500, 500), dtype=np.uint8, chunks=(3, 128, 128)), np.abs(boxes())
    squares = np.minimum(squares, 400.0)
    squares[:, 2:] = squares[:, :2] + 40
    cache = write_cache(tmp_path / "c.zarr", [level], squares, 20)
    assert (cache.read(np.arange(50)) == 0).all()
    (tmp_path / "c.zarr" / "crops" / "c" / "2" / "0" / "0" / "0").unlink()
    with pytest.raises(sl.DataError, match="a file is missing"):
        cache.read(np.arange(40, 45))
    with pytest.raises(sl.DataError, match="a file is missing"):
        CropCache(tmp_path / "c.zarr")


def test_replacing_a_store_never_gives_a_reader_wrong_crops(tmp_path, small_shards):
    squares = boxes()
    old = write_cache(tmp_path / "c.zarr", [image(0)], squares, 20)
    write_cache(tmp_path / "c.zarr", [image(1)], squares, 20, overwrite=True)
    # The open reader sees the new store, whole, or is told; here the files are there again.
    assert {old.read([0]).tobytes()} <= {read_crops([image(i)], old.boxes[:1], 20).tobytes() for i in (0, 1)}
    assert [p.name for p in tmp_path.iterdir() if "part" in p.name or "old" in p.name] == []


@pytest.mark.parametrize("damage", ["flipped bit", "truncated"])
def test_damage_is_noticed_when_crops_are_read(tmp_path, small_shards, damage):
    level, squares = image(), boxes()
    cache = write_cache(tmp_path / "c.zarr", [level], squares, 20)
    shard = tmp_path / "c.zarr" / "crops" / "c" / "1" / "0" / "0" / "0"
    content = bytearray(shard.read_bytes())
    content[500] ^= 4
    shard.write_bytes(content if damage == "flipped bit" else content[:1000])
    with pytest.raises(sl.DataError, match=r"are damaged.*cache_crops\(sdata, overwrite=True\)"):
        cache.read(np.arange(16, 32))


WRITER = """
import sys, time
from pathlib import Path
import dask.array as da, numpy as np
from sealst._data.crops.cache import write_cache

folder, name = Path(sys.argv[1]), sys.argv[2]
data = np.load(folder / "data.npz")
(folder / f"{name}.ready").touch()
while len(list(folder.glob("*.ready"))) < 2:
    time.sleep(0.01)
write_cache(folder / "c.zarr", [da.from_array(data["image"], chunks=(3, 128, 128))], data["boxes"], 20)
"""


def test_two_writers_leave_one_good_store(tmp_path):
    np.savez(tmp_path / "data.npz", image=np.asarray(image()), boxes=boxes())
    commands = [[sys.executable, "-c", WRITER, str(tmp_path), name] for name in "ab"]
    writers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    assert [(one.communicate(timeout=240)[1][-500:], one.returncode)[1] for one in writers] == [0, 0]
    cache = CropCache(tmp_path / "c.zarr")
    np.testing.assert_array_equal(cache.read(cache.slots(boxes())), read_crops([image()], boxes(), 20))


def test_another_images_crops_are_never_used(tmp_path, small_shards):
    squares = boxes()
    write_cache(tmp_path / "c.zarr", [image(0)], squares, 20)
    with pytest.raises(sl.DataError, match=r"holds crops of another image.*overwrite=True"):
        write_cache(tmp_path / "c.zarr", [image(1)], squares, 20)
    source = CropSource([image(1)], squares, str(tmp_path / "c.zarr"))
    with pytest.warns(SealstWarning, match="are not those of this image"):
        crops = gather_crops([source], 20, tmp_path)
    np.testing.assert_array_equal(crops, read_crops([image(1)], squares, 20))
    cache = write_cache(tmp_path / "c.zarr", [image(1)], squares, 20, overwrite=True)
    np.testing.assert_array_equal(cache.read(cache.slots(squares)), crops)


def test_other_folders_are_left_alone(tmp_path):
    (tmp_path / "c.zarr").mkdir()
    (tmp_path / "c.zarr" / "thesis.txt").write_text("years of work")
    with pytest.raises(sl.DataError, match="is no store of crops; name another"):
        write_cache(tmp_path / "c.zarr", [image()], boxes(), 20)
    assert (tmp_path / "c.zarr" / "thesis.txt").read_text() == "years of work"


def test_a_full_disk_is_noticed_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(crop_cache.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(sl.DataError, match=r"need .* GiB, but .* free.*`path=`"):
        write_cache(tmp_path / "c.zarr", [image()], boxes(), 20)


# -- the call ---------------------------------------------------------------------------------------------------------
def test_embeddings_are_the_same_from_the_store(toy_section, tmp_path):
    sdata = toy_section()
    sl.pp.pair_crops(sdata, crop_um=112, crop_px=224)
    options = {"pretrained": False, "copy": True}
    plain = sl.tl.embed(sdata, "vit_tiny_patch16_224", **options).tables["table"].obsm["X_seal"]
    assert sl.pp.cache_crops(sdata, tmp_path) is None
    assert store_of(sdata).parent == tmp_path
    cut = []
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error", SealstWarning)
        patch.setattr("sealst._data.crops.source.iter_crops", lambda *a, **k: cut.append(1))
        cached = sl.tl.embed(sdata, "vit_tiny_patch16_224", **options).tables["table"].obsm["X_seal"]
    assert not cut
    # The batches are others, so the last bits may differ.
    np.testing.assert_allclose(cached, plain, atol=1e-5)


def test_a_lost_store_is_said_and_the_image_is_read(toy_section, tmp_path):
    import shutil

    sdata = toy_section()
    sl.pp.pair_crops(sdata, crop_px=32)
    sl.pp.cache_crops(sdata, tmp_path)
    shutil.rmtree(store_of(sdata))
    table = sdata.tables["table"]
    (region,) = _section.regions_of(table)
    source = _section.region_crops(sdata, table, region).source
    with pytest.warns(SealstWarning, match="Cached crops cannot be used"):
        assert len(gather_crops([source], 32, tmp_path)) == 36


def test_new_crops_forget_the_store_of_the_old(toy_section, tmp_path):
    sdata = toy_section()
    sl.pp.pair_crops(sdata, crop_px=32)
    sl.pp.cache_crops(sdata, tmp_path)
    sl.pp.pair_crops(sdata, crop_px=32)
    assert store_of(sdata).exists()
    sl.pp.pair_crops(sdata, crop_px=16)
    assert sdata.tables["table"].uns["sealst"]["crop_caches"] == {}


def test_cache_needs_crops(toy_section, tmp_path):
    sdata = toy_section()
    with pytest.raises(sl.OrderError, match=r"Run `sl.pp.pair_crops\(sdata\)` first"):
        sl.pp.cache_crops(sdata, tmp_path)
    sl.pp.pair_crops(sdata, crop_px=32)
    (tmp_path / "f").write_text("")
    with pytest.raises(sl.DataError, match="is a file; name a folder"):
        sl.pp.cache_crops(sdata, tmp_path / "f")
    sdata.tables["table"].obs["crop_ok"] = False
    with pytest.raises(sl.DataError, match=r"No spot of 'toy_spots' has a usable crop"):
        sl.pp.cache_crops(sdata, tmp_path)
    assert (
        "crop_caches" not in sdata.tables["table"].uns["sealst"]
        or not sdata.tables["table"].uns["sealst"]["crop_caches"]
    )


def test_cached_crops_survive_writing_the_section(toy_section, tmp_path):
    import spatialdata

    sdata = toy_section()
    sl.pp.pair_crops(sdata, crop_um=[112, 56.5], crop_px=32)
    sl.pp.cache_crops(sdata, tmp_path / "crops", crop_um=56.5)
    sdata.write(tmp_path / "s.zarr")
    back = spatialdata.read_zarr(tmp_path / "s.zarr")
    (region,) = _section.regions_of(back.tables["table"])
    source = _section.region_crops(back, back.tables["table"], region, 56.5).source
    assert source.cache is not None
    original = _section.region_crops(sdata, sdata.tables["table"], region, 56.5).source
    np.testing.assert_array_equal(gather_crops([source], 32, tmp_path), read_crops(original.levels, original.boxes, 32))


def test_overwriting_replaces_stores_only(tmp_path):
    (tmp_path / "c.zarr").mkdir()
    (tmp_path / "c.zarr" / "thesis.txt").write_text("years of work")
    with pytest.raises(sl.DataError, match="is no store of crops and is not replaced"):
        write_cache(tmp_path / "c.zarr", [image()], boxes(), 20, overwrite=True)
    assert (tmp_path / "c.zarr" / "thesis.txt").exists()


def test_a_damaged_store_says_how_to_replace_it(tmp_path, small_shards):
    squares = boxes()
    write_cache(tmp_path / "c.zarr", [image()], squares, 20)
    (tmp_path / "c.zarr" / "crops" / "c" / "1" / "0" / "0" / "0").unlink()
    with pytest.raises(sl.DataError, match=r"a file is missing.*overwrite=True"):
        write_cache(tmp_path / "c.zarr", [image()], squares, 20)
    cache = write_cache(tmp_path / "c.zarr", [image()], squares, 20, overwrite=True)
    np.testing.assert_array_equal(cache.read(cache.slots(squares)), read_crops([image()], squares, 20))


def resized_by_another_version(path: Path) -> None:
    group = zarr.open_group(path, mode="r+")
    del group.attrs["resampling"]


def test_crops_that_another_version_resized_are_not_mixed_with_others(tmp_path, small_shards):
    level, squares, path = image(), boxes(), tmp_path / "c.zarr"
    write_cache(path, [level], squares, 20)
    resized_by_another_version(path)
    with pytest.raises(sl.DataError, match=r"resized by another version.*overwrite=True"):
        write_cache(path, [level], squares, 20)
    with pytest.warns(SealstWarning, match="resized by another version"):
        crops = gather_crops([CropSource([level], squares, str(path))], 20, tmp_path)
    np.testing.assert_array_equal(crops, read_crops([level], squares, 20))
    cache = write_cache(path, [level], squares, 20, overwrite=True)
    assert cache.holds([level], squares, 20)


def test_what_another_version_began_is_begun_anew(tmp_path, small_shards):
    level, squares = image(), boxes()
    path = interrupted(tmp_path, level, squares)
    resized_by_another_version(tmp_path / ".c.zarr.part")
    kept = set()
    for i, one in enumerate((tmp_path / ".c.zarr.part").glob("crops/c/*/0/0/0")):
        # The number of a file that is gone is given to another: a second name holds it.
        (tmp_path / f"held_{i}").hardlink_to(one)
        kept.add(one.stat().st_ino)
    assert kept
    cache = write_cache(path, [level], squares, 20)
    assert kept.isdisjoint(one.stat().st_ino for one in path.glob("crops/c/*/0/0/0"))
    np.testing.assert_array_equal(cache.read(cache.slots(squares)), read_crops([level], squares, 20))
