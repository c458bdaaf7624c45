from __future__ import annotations

import errno
import json
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import sealst as sl
from sealst._data import tokens as token_store
from sealst._data.augment import AUGMENTATION_VERSIONS
from sealst._data.crops.source import CropSource
from sealst._data.dataset import PairDataset, as_is
from sealst._data.tokens import (
    BLOCK,
    Trunk,
    crops_digest,
    in_use,
    is_complete,
    source_digest,
    stacked_tokens,
    token_bytes,
)
from sealst._train.sampler import InOrder

N, PX = 2 * BLOCK + 3, 4
CROPS = np.random.default_rng(0).integers(0, 255, (N, PX, PX, 3), dtype=np.uint8)


class Counted:
    """A trunk that gives the pixels themselves, counts its images and can fail."""

    def __init__(self, scale: float = 1.0, fail_after: int | None = None) -> None:
        self.scale, self.fail_after, self.images = scale, fail_after, 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if self.fail_after is not None and self.images + len(images) > self.fail_after:
            raise KeyboardInterrupt
        self.images += len(images)
        return images.flatten(2).transpose(1, 2) * self.scale


def trunk(run=None, **changes) -> Trunk:
    facts = {"weights": "w", "n_trunk": 2}
    options = {"facts": facts, "augmentation": "soft", "device": torch.device("cpu"), "batch_size": 50}
    return Trunk(run or Counted(), **(options | changes))


def entry_of(made: Trunk, root, crops=CROPS, *, px=PX, views=3):
    return made.entry(root, digest=crops_digest([(slice(None), crops)], len(crops)), n=len(crops), px=px, views=views)


def filled(root, run=None, crops=CROPS, *, views=3, **changes):
    made = trunk(run, **changes)
    entry = entry_of(made, root, crops, views=views)
    made.fill(entry, lambda: crops, bar=SimpleNamespace(update=lambda _: None))
    return entry


def all_of(entry) -> np.ndarray:
    return np.load(entry.folder / "tokens.npy")


def test_entry_holds_the_crop_first_then_augmented_views(tmp_path):
    entry = filled(tmp_path)
    stored = all_of(entry)
    assert stored.shape == (N, 3, PX * PX, 3)
    assert stored.dtype == np.float16
    assert stored.nbytes == token_bytes(N, 3, PX * PX, 3)
    plain = CROPS.reshape(N, PX * PX, 3) / 255
    np.testing.assert_allclose(stored[:, 0], plain, atol=1e-3)
    for view in (1, 2):
        assert (np.abs(stored[:, view] - plain).mean(axis=(1, 2)) > 1e-3).all()
    assert (stored[:, 1] != stored[:, 2]).any(axis=(1, 2)).all()
    meta = json.loads((entry.folder / "meta.json").read_text())
    assert meta["shape"] == list(stored.shape)
    assert (meta["dtype"], meta["views"], meta["augmentation"]) == ("float16", 3, "soft, version 1")
    assert meta["bytes"] == sum((entry.folder / name).stat().st_size for name in ("tokens.npy", "crc32.u32"))


def test_second_run_makes_nothing_and_callers_random_state_is_left_alone(tmp_path):
    first, second = Counted(), Counted()
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    entry = filled(tmp_path, first)
    assert torch.equal(torch.rand(2), expected)
    assert first.images == 3 * N
    assert filled(tmp_path, second).folder == entry.folder
    assert second.images == 0


def test_views_do_not_depend_on_the_batch_size_or_the_callers_seed(tmp_path):
    torch.manual_seed(1)
    a = all_of(filled(tmp_path / "a", batch_size=7))
    torch.manual_seed(2)
    b = all_of(filled(tmp_path / "b", batch_size=200))
    np.testing.assert_array_equal(a, b)


CHANGES = {
    "weights": {"facts": {"weights": "v", "n_trunk": 2}},
    "blocks": {"facts": {"weights": "w", "n_trunk": 3}},
    "augmentation": {"augmentation": "hard"},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_key_changes_with_how_tokens_are_made(tmp_path, changes):
    assert entry_of(trunk(**changes), tmp_path).key != entry_of(trunk(), tmp_path).key


def test_key_changes_with_the_crops_their_order_and_the_views(tmp_path, monkeypatch):
    other = CROPS.copy()
    other[5, 0, 0, 0] ^= 1
    keys = [
        entry_of(trunk(), tmp_path).key,
        entry_of(trunk(), tmp_path, other).key,
        entry_of(trunk(), tmp_path, CROPS[::-1]).key,
        entry_of(trunk(), tmp_path, views=2).key,
        entry_of(trunk(), tmp_path, px=5).key,
    ]
    monkeypatch.setitem(AUGMENTATION_VERSIONS, trunk().augmentation, 2)
    keys.append(entry_of(trunk(), tmp_path).key)
    monkeypatch.setattr(token_store, "FORMAT", "sealst-tokens-2")
    keys.append(entry_of(trunk(), tmp_path).key)
    assert len(set(keys)) == len(keys)


def test_key_does_not_change_with_what_does_not_matter(tmp_path):
    key = entry_of(trunk(), tmp_path).key
    assert entry_of(trunk(batch_size=3, notes={"encoder": "other name"}), tmp_path / "elsewhere").key == key
    # A single view is the crop itself, whatever the augmentation.
    single = {entry_of(trunk(augmentation=name), tmp_path, views=1).key for name in ("none", "soft", "hard")}
    assert len(single) == 1


def test_digest_of_a_source_is_that_of_its_crops_in_the_order_of_boxes():
    image = np.random.default_rng(1).integers(0, 255, (3, 40, 40), dtype=np.uint8)
    boxes = np.array([[20, 20, 28, 28], [0, 0, 8, 8], [0, 20, 8, 28.0]])
    crops = np.stack([np.moveaxis(image[:, y : y + 8, x : x + 8], 0, 2) for x, y in boxes[:, :2].astype(int)])
    found = source_digest(CropSource([image], boxes), 8, bar=SimpleNamespace(update=lambda _: None))
    assert found == crops_digest([(slice(None), crops)], 3)


@pytest.mark.parametrize("after", [10, 3 * BLOCK + 10, 6 * BLOCK + 1])
def test_a_killed_build_goes_on_where_it_stopped(tmp_path, after):
    with pytest.raises(KeyboardInterrupt):
        filled(tmp_path, Counted(fail_after=after))
    rest = Counted()
    entry = filled(tmp_path, rest)
    assert rest.images == 3 * (N - after // (3 * BLOCK) * BLOCK)
    np.testing.assert_array_equal(all_of(entry), all_of(filled(tmp_path / "whole")))
    assert {p.name for p in entry.folder.iterdir()} == {"tokens.npy", "crc32.u32", "meta.json"}


def test_what_was_torn_after_the_last_record_is_written_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        filled(tmp_path, Counted(fail_after=3 * BLOCK + 10))
    (folder,) = (p for p in tmp_path.iterdir() if p.is_dir())
    with open(folder / "tokens.npy", "ab") as file:
        file.write(b"torn" * 10_000)
    np.testing.assert_array_equal(all_of(filled(tmp_path)), all_of(filled(tmp_path / "whole")))


def _truncated(folder):
    size = (folder / "tokens.npy").stat().st_size
    with open(folder / "tokens.npy", "r+b") as file:
        file.truncate(size - 10)


def _flipped(folder):
    with open(folder / "tokens.npy", "r+b") as file:
        file.seek(20_000)
        byte = file.read(1)[0]
        file.seek(20_000)
        file.write(bytes([byte ^ 8]))


def _no_tokens(folder):
    (folder / "tokens.npy").unlink()


def _meta_cut(folder):
    text = (folder / "meta.json").read_text()
    (folder / "meta.json").write_text(text[: len(text) // 2])


@pytest.mark.parametrize("damage", [_truncated, _flipped, _no_tokens, _meta_cut])
def test_damage_is_noticed_and_mended(tmp_path, damage):
    entry = filled(tmp_path)
    good = all_of(entry)
    damage(entry.folder)
    with pytest.warns(sl.SealstWarning, match="are damaged; they are made again"):
        assert not is_complete(entry)
    again = Counted()
    np.testing.assert_array_equal(all_of(filled(tmp_path, again)), good)
    assert again.images == 3 * N
    assert is_complete(entry)


def test_values_beyond_float16_are_kept_in_bfloat16(tmp_path):
    crops = CROPS.copy()
    # Small values first: what is written in float16 must be written anew.
    crops[:BLOCK] //= 100
    large = filled(tmp_path, Counted(scale=1e5), crops, views=1)
    tokens = stacked_tokens([large.folder])
    assert tokens.dtype == torch.bfloat16
    found = tokens[np.arange(N), np.zeros(N, dtype=int)]
    expected = torch.from_numpy(crops.reshape(N, PX * PX, 3) / 255 * 1e5).float()
    torch.testing.assert_close(found.float(), expected, rtol=2**-8, atol=0)
    # Beside a section in float16 a batch is float32.
    small = filled(tmp_path, crops=CROPS[:5], views=1)
    both = stacked_tokens([small.folder, large.folder])
    assert both.dtype == torch.float32
    mixed = both[np.array([7, 2]), np.array([0, 0])]
    torch.testing.assert_close(mixed[0], found[2].float())
    torch.testing.assert_close(mixed[1], torch.from_numpy(CROPS[2].reshape(-1, 3) / 255).float(), rtol=1e-3, atol=1e-3)


def test_sections_are_read_as_one_sequence_in_any_order(tmp_path):
    parts = [CROPS[:5], CROPS[5:70], CROPS[70:]]
    entries = [filled(tmp_path, crops=part) for part in parts]
    tokens = stacked_tokens([e.folder for e in entries])
    assert (len(tokens), tokens.shape) == (N, (N, 3, PX * PX, 3))
    whole = np.concatenate([all_of(e) for e in entries])
    rng = np.random.default_rng(0)
    rows, views = rng.integers(0, N, 40), rng.integers(0, 3, 40)
    np.testing.assert_array_equal(tokens[rows, views].numpy(), whole[rows, views])
    back = pickle.loads(pickle.dumps(tokens))
    np.testing.assert_array_equal(back[rows, views].numpy(), whole[rows, views])
    assert len(pickle.dumps(tokens)) < 10_000
    data = PairDataset(tokens, np.arange(N, dtype=np.float32)[:, None])
    loader = DataLoader(data, batch_size=None, sampler=InOrder(N, 50), collate_fn=as_is, num_workers=1)
    served = torch.cat([batch["tokens"] for batch in loader])
    np.testing.assert_array_equal(served.numpy(), whole[:, 0])


def test_tokens_that_do_not_belong_together_or_are_gone_are_refused(tmp_path):
    a, b = filled(tmp_path, views=2), filled(tmp_path, views=3)
    with pytest.raises(sl.DataError, match=r"of different shapes cannot be joined: \[\(2, 16, 3\), \(3, 16, 3\)\]"):
        stacked_tokens([a.folder, b.folder])
    with pytest.raises(sl.DataError, match="are gone. Train again"):
        stacked_tokens([tmp_path / "nothing"])


def test_a_disk_that_fills_up_is_said_and_the_build_can_go_on(tmp_path):
    class Full(Counted):
        def __call__(self, images):
            if self.images >= 3 * BLOCK:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().__call__(images)

    with pytest.raises(sl.DataError, match=r"is full; .* Free space with `sl.tl.clear_cache\(\)`"):
        filled(tmp_path, Full())
    rest = Counted()
    filled(tmp_path, rest)
    assert rest.images == 3 * (N - BLOCK)


SCRIPT = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
import numpy as np, torch
from sealst._data.tokens import Trunk
made = [0]
def run(images):
    made[0] += len(images)
    time.sleep(0.1)
    return images.flatten(2).transpose(1, 2)
crops = np.random.default_rng(0).integers(0, 255, (200, 4, 4, 3), dtype=np.uint8)
trunk = Trunk(run, facts={"w": 1}, augmentation="soft", device=torch.device("cpu"), batch_size=64)
entry = trunk.entry(Path(sys.argv[1]), digest="d", n=200, px=4, views=2)
trunk.fill(entry, lambda: crops, bar=SimpleNamespace(update=lambda _: None))
print(made[0])
"""


@pytest.mark.slow
def test_two_processes_make_one_entry_once(tmp_path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    made = sorted(int(run.communicate()[0]) for run in runs)
    assert made == [0, 400]


def test_clear_removes_entries_by_age_and_nothing_else(tmp_path, monkeypatch):
    with sl.settings.override(cache_dir=tmp_path):
        assert sl.tl.clear_cache() == 0
        root = tmp_path / "tokens"
        old, new = filled(root), filled(root, crops=CROPS[:9])
        with pytest.raises(KeyboardInterrupt):
            filled(root, Counted(fail_after=3 * BLOCK + 1), crops=CROPS[1:])
        foreign = root / "notes"
        foreign.mkdir()
        (foreign / "mine.txt").write_text("keep")
        day = 86_400
        meta = old.folder / "meta.json"
        token_store.os.utime(meta, (meta.stat().st_mtime - 40 * day,) * 2)
        size = sum(p.stat().st_size for p in old.folder.iterdir())
        assert sl.tl.clear_cache(older_than=30, dry_run=True) == size
        assert is_complete(old)
        with token_store._locked(old.folder):
            assert sl.tl.clear_cache(older_than=30) == 0
        with in_use(root, [old]):
            pass
        assert sl.tl.clear_cache(older_than=30) == 0
        token_store.os.utime(meta, (meta.stat().st_mtime - 40 * day,) * 2)
        assert sl.tl.clear_cache(older_than=30) == size
        assert not old.folder.exists()
        assert is_complete(new)
        assert sl.tl.clear_cache() > 0
        assert [p.name for p in root.iterdir() if p.is_dir()] == ["notes"]
        with pytest.raises(sl.DataError, match="`older_than` must be a positive number, found -1"):
            sl.tl.clear_cache(older_than=-1)


READER = """
import sys
from pathlib import Path
from types import SimpleNamespace
from sealst._data.tokens import Entry, in_use
root = Path(sys.argv[1])
with in_use(root, [Entry(root, {"a": 1}, 4, 1, {})]):
    print("in use", flush=True)
    sys.stdin.read()
"""


def test_clear_leaves_what_a_living_run_reads(tmp_path):
    with sl.settings.override(cache_dir=tmp_path):
        entry = filled(tmp_path / "tokens")
        files = sorted(p.name for p in entry.folder.iterdir())
        with in_use(entry.root, [entry]), in_use(entry.root, [entry]):
            assert sl.tl.clear_cache(dry_run=True) == 0
            assert sl.tl.clear_cache() == 0
        assert is_complete(entry)
        # One that is gone, however it ended, is no reason.
        assert sorted(p.name for p in entry.folder.iterdir()) == files
        assert not list(entry.root.glob(".reader-*"))
        (entry.folder / ".reader-0123abcd").touch()
        assert sl.tl.clear_cache() > 0
        assert not entry.folder.exists()
        assert not list(entry.root.glob(".reader-*"))


@pytest.mark.slow
def test_another_process_that_reads_tokens_is_named(tmp_path, caplog):
    with sl.settings.override(cache_dir=tmp_path):
        root = tmp_path / "tokens"
        reader = subprocess.Popen(
            [sys.executable, "-c", READER, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert reader.stdout is not None
        assert reader.stdout.readline() == "in use\n"
        # It may only be about to write them.
        with caplog.at_level("INFO", logger="sealst"):
            assert sl.tl.clear_cache() == 0
        assert f"is in use by process {reader.pid} on" in caplog.text
        assert len([p for p in root.iterdir() if p.is_dir()]) == 1
        reader.kill()
        reader.communicate()
        sl.tl.clear_cache()
        assert not [p for p in root.iterdir() if p.is_dir()]


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        "[]",
        "{}",
        '{"key": 5}',
        '{"key": "KEY", "dtype": "float64", "shape": [131, 3, 16, 3], "rows": 131}',
        '{"key": "KEY", "dtype": "float16", "shape": [1000000000000, 3, 16, 3], "rows": 1000000000000}',
    ],
)
def test_a_record_of_anything_else_is_no_record(tmp_path, content):
    entry = filled(tmp_path)
    (entry.folder / "meta.json").write_text(content.replace("KEY", entry.key))
    with pytest.warns(sl.SealstWarning, match="are damaged; they are made again"):
        assert not is_complete(entry)
