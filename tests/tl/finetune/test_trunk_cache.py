"""The trunk cache as runs see it: shared, chosen, and too large."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.models import save_for_hf

import sealst as sl
from sealst._data.crops import source as store
from sealst._train.inputs import CacheCost, may_cache, use_trunk_cache
from sealst.models import build_encoder
from sealst.models._adapters import add_adapter, resolve_adapter
from sealst.models._encoders.encoder import Encoder

GIB = 2**30


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    with sl.settings.override(cache_dir=tmp_path / "cache"):
        yield tmp_path / "cache" / "tokens"


@pytest.fixture
def trunk_images(monkeypatch) -> list[int]:
    """Images of every call of an encoder's trunk."""
    seen: list[int] = []
    trunk = Encoder.trunk
    monkeypatch.setattr(Encoder, "trunk", lambda self, images, n: seen.append(len(images)) or trunk(self, images, n))
    return seen


def entries(folder: Path) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/meta.json")}


def sections(ready):
    return [ready(section=name, patient=name, seed=i) for i, name in enumerate("ab")]


def test_runs_share_the_tokens_of_each_section(ready, finetune, fast, cache, trunk_images, tmp_path):
    a, b = sections(ready)
    b.images["b_he"] = a.images["a_he"]
    c = ready(section="c", patient="c", n=5)
    # Weights that do not follow the seed of a run.
    save_for_hf(timm.create_model("vit_tiny_patch16_224", num_classes=0), tmp_path / "vit", safe_serialization=True)
    finetune = partial(finetune, encoder=f"local-dir:{tmp_path / 'vit'}", pretrained=True)
    params = fast | {"cache": "trunk", "epochs": 1, "warmup_epochs": 0}
    first = finetune([a], params=params, seed=1)
    n = len(a.tables["table"])
    assert sum(trunk_images) == 2 * n
    trunk_images.clear()
    # The same picture under another name, and another seed: nothing to do.
    again = finetune([b], params=params, seed=2)
    assert sum(trunk_images) == 0
    assert first.fingerprint != again.fingerprint
    # Together with a new section only that one is made; held-out crops have one view.
    finetune([a, c], validation=[b], allow_shared_patients=True, params=params)
    assert sum(trunk_images) == 2 * 25 + n
    assert sorted(meta["views"] for meta in entries(cache).values()) == [1, 2, 2]
    (meta, *_) = entries(cache).values()
    assert (meta["arch"], meta["n_trunk"], meta["precision"]) == ("vit_tiny_patch16_224", 10, "torch.float32")


def test_tokens_and_the_line_to_beat_are_in_the_precision_of_the_training(ready, finetune, fast, cache, monkeypatch):
    from sealst._train import module as _baseline

    seen = []
    probe = _baseline.ridge_probe
    monkeypatch.setattr(
        _baseline, "ridge_probe", lambda x, *args, **options: seen.append(x) or probe(x, *args, **options)
    )
    a, b = sections(ready)
    for precision in ("32-true", "bf16-mixed"):
        params = fast | {"cache": "trunk", "epochs": 1, "warmup_epochs": 0, "precision": precision}
        finetune([a], validation=[b], allow_shared_patients=True, params=params)
    assert {meta["precision"] for meta in entries(cache).values()} == {"torch.float32", "torch.bfloat16"}
    full, half = seen
    assert 0 < abs(full - half).max() < 0.2 * abs(full).max()


def test_a_run_on_cached_tokens_is_that_which_made_them(ready, finetune, fast, cache):
    params = fast | {"cache": "trunk", "epochs": 1}
    made, reused = (finetune(sections(ready), params=params).fingerprint for _ in range(2))
    assert made == reused


def test_large_collections_are_read_section_by_section_with_the_same_result(ready, finetune, fast, cache, monkeypatch):
    params = fast | {"cache": "trunk", "epochs": 1, "warmup_epochs": 0}
    expected = finetune(sections(ready), params=params).fingerprint
    found = set(entries(cache))
    sl.tl.clear_cache()
    assert not entries(cache)
    monkeypatch.setattr(store, "MAX_RAM_BYTES", 0)
    assert finetune(sections(ready), params=params).fingerprint == expected
    assert set(entries(cache)) == found


def test_killed_run_goes_on(ready, finetune, fast, cache, monkeypatch, trunk_images):
    from sealst._data import tokens as token_store

    monkeypatch.setattr(token_store, "BLOCK", 16)
    a = ready(section="a", patient="a")
    params = fast | {"cache": "trunk", "epochs": 1, "warmup_epochs": 0}
    counted = Encoder.trunk

    def fails(self, images, n):
        if sum(trunk_images) >= 2 * 16:
            raise KeyboardInterrupt
        return counted(self, images, n)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "trunk", fails)
        with pytest.raises(KeyboardInterrupt):
            finetune([a], params=params)
    trunk_images.clear()
    finetune([a], params=params)
    assert sum(trunk_images) == 2 * (len(a.tables["table"]) - 16)


def test_trunk_facts_are_those_of_the_first_blocks_only():
    encoder = build_encoder("vit_tiny_patch16_224", pretrained=False)
    facts = encoder.trunk_facts(10)
    json.dumps(facts)
    with torch.no_grad():
        encoder.vit.blocks[10].mlp.fc1.weight += 1
        encoder.vit.norm.weight += 1
    assert encoder.trunk_facts(10) == facts
    assert build_encoder("vit_tiny_patch16_224", pretrained=False, pool="mean").trunk_facts(10) == facts
    assert encoder.trunk_facts(9) != facts
    for name in ("cls_token", "pos_embed", "patch_embed.proj.bias", "blocks.9.attn.qkv.bias"):
        parameter = encoder.vit.get_parameter(name)
        with torch.no_grad():
            parameter += 1
            assert encoder.trunk_facts(10) != facts, name
            parameter -= 1
    assert build_encoder("vit_tiny_patch16_224", pretrained=False, seed=1).trunk_facts(10) != facts


def test_trunk_facts_do_not_depend_on_the_adapter():
    plain = build_encoder("vit_tiny_patch16_224", pretrained=False).trunk_facts(10)
    for adapter in ("lora", "blocks"):
        adapted = add_adapter(build_encoder("vit_tiny_patch16_224", pretrained=False), resolve_adapter(adapter))
        assert adapted.trunk_facts(10) == plain


def plan(**changes) -> CacheCost:
    standard = {
        "n_blocks": 12,
        "n_trunk": 11,
        "n_train": 100,
        "n_held": 0,
        "missing": 400,
        "size": GIB,
        "free": 9 * GIB,
    }
    return CacheCost(**(standard | changes))


CHOICES = {
    "more epochs than views": (10, plan(), True, r"cache = trunk \(\d+% of the plain loop's work in 10 epochs\)"),
    "fewer epochs than views": (3, plan(), False, "too little gain"),
    "tokens already there": (1, plan(missing=0, size=0), True, "cache = trunk"),
    "hardly a frozen block": (10, plan(n_trunk=1), False, "too little gain"),
    "nothing adapted": (10, plan(n_trunk=12), True, "cache = trunk"),
    # 11 blocks in every epoch, or once per view.
    "the class token alone": (5, plan(n_light=1), True, r"cache = trunk \(80% of the plain loop's work in 5 epochs\)"),
    "nothing adapted, the class token alone": (10, plan(n_trunk=12, n_light=1), True, "cache = trunk"),
    "no room": (
        10,
        plan(free=GIB),
        False,
        r"cache = none \(tokens need 1.0 GiB, but 1.0 GiB are free; Free space with",
    ),
}


@pytest.mark.parametrize(("epochs", "plan", "expected", "reason"), CHOICES.values(), ids=CHOICES)
def test_automatic_choice(caplog, epochs, plan, expected, reason):
    caplog.set_level(logging.INFO, "sealst")
    assert use_trunk_cache(sl.tl.TrainParams(epochs=epochs, views=4), plan) == expected
    (line,) = caplog.messages
    assert re.search(reason, line)


def test_a_cache_that_was_asked_for_is_made_or_refused():
    asked = sl.tl.TrainParams(epochs=1, views=4, cache="trunk")
    assert use_trunk_cache(asked, plan())
    with pytest.raises(sl.DataError, match=r"needs 1.0 GiB, but .* has 1.0 GiB free, .* `sl.tl.clear_cache\(\)`"):
        use_trunk_cache(asked, plan(free=GIB))


def test_one_plain_view_is_never_cached_when_augmentation_is_wanted():
    assert not may_cache(sl.tl.TrainParams(epochs=10, views=1), 10)
    assert may_cache(sl.tl.TrainParams(epochs=10, views=1, augmentation="none"), 10)
    assert may_cache(sl.tl.TrainParams(epochs=10, views=4), 10)
    assert not may_cache(sl.tl.TrainParams(epochs=10, views=4), 0)
    assert not may_cache(sl.tl.TrainParams(epochs=10, views=4, cache="none"), 10)
    assert may_cache(sl.tl.TrainParams(epochs=10, views=1, cache="trunk"), 10)


def test_without_room_the_plain_loop_trains(ready, finetune, fast, cache, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "sealst")
    monkeypatch.setattr("sealst._train.inputs._free", lambda: 1000)
    model = finetune(sections(ready), params=fast | {"epochs": 3})
    assert np.isfinite(model.history["train_loss"]).all()
    assert not entries(cache)
    assert "cache = none (tokens need" in caplog.text
    with pytest.raises(sl.DataError, match="The trunk cache needs .* of which a tenth is left alone"):
        finetune(sections(ready), params=fast | {"cache": "trunk"})


def test_size_is_announced_before_it_is_written(ready, finetune, fast, cache, caplog):
    caplog.set_level(logging.INFO, "sealst")
    (a, _), params = sections(ready), fast | {"cache": "trunk", "epochs": 1, "warmup_epochs": 0}
    n = len(a.tables["table"])
    for line in (
        f" for {n} crops x 2 views in {cache}, .* free; 0 of 1",
        "0.0 MiB to write .* 1 of 1 sections are there",
    ):
        caplog.clear()
        finetune([a], params=params)
        assert re.search(f"trunk cache: .*{line}", caplog.text)
    (meta,) = entries(cache).values()
    # 36 crops, 2 views, 5 tokens of 192 numbers of 2 bytes; the checksums and the header are small.
    assert 0 <= meta["bytes"] - n * 2 * 5 * 192 * 2 < 1000
