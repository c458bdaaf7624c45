"""The last block for the class token alone equals the block as timm runs it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import Block
from torch import nn

from sealst.models import BlocksParams, LoraParams, build_encoder
from sealst.models._adapters import add_adapter
from sealst.models._encoders import encoder as encoder_module
from sealst.models._encoders.blocks import class_token, gives_class_token

TINY = "vit_tiny_patch16_224"


@settings(max_examples=25, deadline=None)
@given(
    heads=st.sampled_from([1, 2, 4]),
    n_tokens=st.integers(1, 9),
    bias=st.booleans(),
    scaled=st.booleans(),
    scale_norm=st.booleans(),
    seed=st.integers(0, 9),
)
def test_a_block_gives_its_class_token(heads, n_tokens, bias, scaled, scale_norm, seed):
    torch.manual_seed(seed)
    options = {"qkv_bias": bias, "init_values": 0.5 if scaled else None, "scale_attn_norm": scale_norm}
    block = Block(16, heads, **options).double()
    tokens = torch.randn(3, n_tokens, 16, dtype=torch.float64)
    assert gives_class_token(block)
    torch.testing.assert_close(class_token(block, tokens), block(tokens)[:, :1])


def _run(encoder, tokens, n_trunk):
    encoder.zero_grad()
    torch.manual_seed(3)
    z = encoder.tail(tokens, n_trunk)
    z.pow(3).sum().backward()
    return z.detach(), {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}


def _encoder(adapter, *, scale=0.1):
    encoder = add_adapter(build_encoder(TINY, pretrained=False, pool="cls"), adapter)
    with torch.no_grad():
        for name, p in encoder.named_parameters():
            if "lora_B" in name:
                p.normal_(0, scale)
    return encoder


@pytest.mark.parametrize(
    "adapter",
    [
        LoraParams(dropout=0.0),
        LoraParams(dropout=0.0, n_blocks=2),
        LoraParams(dropout=0.0, rslora=True, targets=r"mlp\.fc1"),
        # Dropout before the keys draws the same numbers in both; behind them there are fewer tokens to draw for.
        LoraParams(dropout=0.3, targets=r"attn\.qkv"),
        BlocksParams(n_blocks=1),
    ],
    ids=str,
)
def test_training_has_the_same_values_and_gradients(adapter, monkeypatch):
    encoder = _encoder(adapter).train()
    n_trunk = adapter.n_trunk(12)
    tokens = encoder.trunk(torch.rand(3, 3, 32, 32), n_trunk).detach()
    assert encoder.n_light == 1
    z, found = _run(encoder, tokens, n_trunk)
    monkeypatch.setattr(encoder_module, "gives_class_token", lambda _: False)
    expected_z, expected = _run(encoder, tokens, n_trunk)
    torch.testing.assert_close(z, expected_z, rtol=1e-4, atol=1e-5)
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


def test_without_the_adapter_it_is_the_pretrained_encoder():
    encoder = _encoder(LoraParams()).eval()
    plain = build_encoder(TINY, pretrained=False, pool="cls").eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode(), encoder.without_adapter():
        torch.testing.assert_close(encoder(images), plain(images))
    with torch.inference_mode():
        assert not torch.allclose(encoder(images), plain(images), atol=1e-3)


def test_under_autocast_it_is_as_near_as_the_block():
    encoder = _encoder(LoraParams(), scale=0.02).eval()
    images = torch.rand(4, 3, 32, 32)
    with torch.inference_mode():
        exact = encoder(images)
        with torch.autocast("cpu", torch.bfloat16):
            half = encoder(images).float()
    assert (half - exact).norm() / exact.norm() < 2e-2


class _Doubled(Block):
    def forward(self, x, attn_mask=None):
        return 2 * super().forward(x, attn_mask)


def _hooked():
    block = Block(16, 2)
    block.attn.register_forward_hook(lambda *_: None)
    return block


@pytest.mark.parametrize(
    "block",
    [_Doubled(16, 2), Block(16, 2, qk_norm=True), _hooked(), nn.Linear(16, 16)],
    ids=["subclass", "normalised keys", "hooks", "no block"],
)
def test_a_block_that_does_more_runs_as_it_is(block):
    assert not gives_class_token(block)


@pytest.mark.parametrize("pool", ["mean", "cls+mean"])
def test_patch_tokens_are_kept_where_they_are_pooled(pool, monkeypatch):
    def refuse(*_):
        raise AssertionError("the other tokens are needed here")

    monkeypatch.setattr(encoder_module, "class_token", refuse)
    encoder = build_encoder(TINY, pretrained=False, pool=pool)
    assert encoder.n_light == 0
    with torch.inference_mode():
        assert encoder(torch.rand(2, 3, 32, 32)).shape == (2, encoder.spec.dim)


def test_dora_changes_more_than_a_product_and_runs_as_it_is():
    encoder = _encoder(LoraParams(dora=True))
    assert not gives_class_token(encoder.vit.blocks[-1])
    with torch.inference_mode():
        assert torch.isfinite(encoder(torch.rand(2, 3, 32, 32))).all()
