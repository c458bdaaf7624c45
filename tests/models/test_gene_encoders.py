"""What every kind of gene encoder must do, and what only some do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import sealst as sl
from sealst._core.seeds import seeded
from sealst.models import CropSpec, GeneTransformerParams, HeadParams, LoraParams, SealModel, build_encoder
from sealst.models._genes import GENE_ENCODERS, GeneAttention, resolve_gene_encoder

pytestmark = pytest.mark.usefixtures("one_thread")

GENES, DIM = 30, 8
SMALL = {
    "vae": {"hidden": (16,)},
    "mlp": {"hidden": (16,)},
    "mae": {"hidden": (16,)},
    "transformer": {"width": 16, "n_latents": 3, "n_heads": 2, "hidden": (16,)},
}
MASK_AWARE = {"mae", "transformer"}


@pytest.fixture(params=sorted(GENE_ENCODERS))
def params(request):
    return resolve_gene_encoder({"kind": request.param, **SMALL[request.param]})


@pytest.fixture
def x():
    """Profiles of two programmes; some entries are hidden."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(64, 2)) @ rng.normal(size=(2, GENES)) + rng.normal(0, 0.1, (64, GENES))
    values = (values - values.mean(0)) / values.std(0)
    values[rng.random(values.shape) < 0.1] = 0
    return torch.from_numpy(values.astype(np.float32))


def build(params, **changes):
    with seeded(0):
        return replace(params, **changes).build(GENES, DIM)


def test_shapes(params, x):
    net = build(params)
    code = net(x[:5])
    assert code.z.shape == (5, DIM)
    assert net.decode(code.z).shape == (5, GENES)
    assert [part is not None for part in code[1:]] == [params.variational] * 3


def test_codes_of_a_spot_are_the_same_twice_and_in_any_company(params, x):
    net = build(params).eval()
    with torch.inference_mode():
        whole = net(x).z
        assert torch.equal(net(x).z, whole)
        torch.testing.assert_close(net(x[3:4]).z, whole[3:4])
        assert whole.std(0).min() > 1e-4, "codes must differ between spots"


def test_every_parameter_learns(params, x):
    net = build(params, dropout=0.0)
    net.decode(net(x, sample=params.variational).z).square().mean().backward()
    without = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # The mean of a batch is taken out again behind these.
    assert not [name for name in without if not (name.startswith("body") and name.endswith("bias"))]


def test_training_lowers_the_loss(params, x):
    net = build(params, dropout=0.0)
    optimiser = torch.optim.Adam(net.parameters(), lr=5e-3)
    losses = []
    for _ in range(80):
        optimiser.zero_grad()
        loss = torch.nn.functional.mse_loss(net.decode(net(x).z), x)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    # The variance is 1, so a constant reaches no less.
    assert losses[0] > 0.9
    assert losses[-1] < 0.5


def test_a_profile_without_any_measured_gene_has_a_code(params):
    net = build(params).eval()
    with torch.inference_mode():
        z = net(torch.zeros(2, GENES)).z
    assert torch.isfinite(z).all()
    torch.testing.assert_close(z[0], z[1])
    net(torch.zeros(2, GENES)).z.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def test_mask_aware_kinds_tell_a_hidden_gene_from_one_at_its_mean(params, x):
    net = build(params).eval()
    hidden, at_mean = x[:8].clone(), x[:8].clone()
    hidden[:, :5], at_mean[:, :5] = 0, 1e-7
    with torch.inference_mode():
        change = (net(hidden).z - net(at_mean).z).abs().max().item()
    assert (change > 1e-3) == (params.kind in MASK_AWARE)
    assert change > 1e-3 or change < 1e-5


def test_models_come_back_exactly(params, panel, tmp_path):
    with seeded(1):
        model = SealModel(
            build_encoder("vit_tiny_patch16_224", pretrained=False), panel, crop=CropSpec(16.0, 32),
            adapter=LoraParams(), gene_encoder=params, head=HeadParams(8),
        )  # fmt: skip
    profiles = np.random.default_rng(3).uniform(0, 3, (6, 20)).astype(np.float32)
    # What panels do with genes that a section lacks.
    profiles[:, 4] = panel.mean[4]
    back = sl.models.load(model.save(tmp_path / "m"), device="cpu")
    assert back.gene_params == params
    np.testing.assert_array_equal(back.embed_genes(profiles), model.embed_genes(profiles))
    assert back.fingerprint == model.fingerprint
    assert params.describe() in repr(back)


def test_genes_that_a_section_lacks_reach_the_encoder_as_hidden(panel):
    """`standardise` must give exactly 0 at the panel's mean, by which mask-aware kinds know them."""
    with seeded(1):
        model = SealModel(
            build_encoder("vit_tiny_patch16_224", pretrained=False), panel, crop=CropSpec(16.0, 32),
            adapter=LoraParams(), gene_encoder=resolve_gene_encoder({"kind": "mlp", "hidden": (8,)}),
        )  # fmt: skip
    x = panel.extract(np.full((2, 19), 0.3), list(panel.genes[:19]), warn_missing=False)
    assert (model.standardise(torch.from_numpy(x))[:, 19] == 0).all()


def test_attention_is_that_of_tokens_laid_out():
    with seeded(0):
        net = GeneAttention(width=8, n_heads=2)
        torch.nn.init.normal_(net.nothing)
        h, x = torch.randn(3, 4, 8), torch.randn(3, 6)
        names, values = torch.randn(6, 8), torch.randn(6, 8)
    x[0, 2] = x[1, :] = 0
    tokens = names + x[..., None] * values
    q, k, v = net.query(net.norm(h)), net.key(tokens), net.value(tokens)
    expected = []
    for i, part in enumerate((slice(0, 4), slice(4, 8))):
        scores = (q[..., part] @ k[..., part].mT) / 2
        scores[(x == 0)[:, None].expand_as(scores)] = -torch.inf
        weight = scores.exp() / (scores.exp().sum(-1, keepdim=True) + net.nothing[i].exp())
        expected.append(weight @ v[..., part])
    torch.testing.assert_close(net(h, x, names, values), net.out(torch.cat(expected, -1)))


def test_only_the_masked_autoencoder_asks_for_hidden_genes():
    shares = {kind: resolve_gene_encoder(kind).mask_share for kind in GENE_ENCODERS}
    assert shares == {"vae": 0.0, "mlp": 0.0, "mae": 0.3, "transformer": 0.0}
    assert resolve_gene_encoder({"kind": "mae", "mask": 0.6}).mask_share == 0.6


def test_wrong_settings_are_refused():
    with pytest.raises(sl.DataError, match=r"`gene_encoder` must be one of 'mae', 'mlp', .*found 'bert'"):
        resolve_gene_encoder("bert")
    with pytest.raises(sl.DataError, match="`gene_encoder` has no field 'depth'; known: 'hidden', 'dropout'"):
        resolve_gene_encoder({"kind": "mlp", "depth": 3})
    with pytest.raises(TypeError, match="`gene_encoder` must be a name, a mapping or .* found int"):
        resolve_gene_encoder(3)
    with pytest.raises(sl.DataError, match="`gene_encoder.mask` must be"):
        resolve_gene_encoder({"kind": "mae", "mask": 2})
    with pytest.raises(sl.DataError, match="`gene_encoder.hidden` must be a positive number, found 0"):
        resolve_gene_encoder({"kind": "mlp", "hidden": (8, 0)})
    with pytest.raises(sl.DataError, match="`gene_encoder.width` is 10, not a multiple of `gene_encoder.n_heads`, 4"):
        GeneTransformerParams(width=10)
