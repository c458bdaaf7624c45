from __future__ import annotations

import pytest
import torch

from sealst._core.losses.masking import add_noise, mask_genes
from sealst._errors import DataError


def expression(n: int = 200, genes: int = 100) -> torch.Tensor:
    # No entry is 0, so that what is 0 was hidden.
    return torch.randn(n, genes, generator=torch.Generator().manual_seed(0)).abs() + 0.1


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("share", [0.0, 0.15, 0.75, 1.0])
def test_the_share_is_hidden_behind_the_mean_and_the_rest_kept(share):
    x = expression()
    kept = x.clone()
    masked, hidden = mask_genes(x, share, seeded())
    assert hidden.dtype == torch.bool
    assert hidden.shape == masked.shape == x.shape
    assert (masked[hidden] == 0).all()
    assert torch.equal(masked[~hidden], x[~hidden])
    assert hidden.double().mean().item() == pytest.approx(share, abs=0.02)
    assert torch.equal(x, kept)


def test_every_spot_and_every_gene_is_hidden_now_and_then():
    hidden = mask_genes(expression(), 0.3, seeded())[1]
    assert len({tuple(row.tolist()) for row in hidden}) == len(hidden)
    for dim in (0, 1):
        rates = hidden.double().mean(dim)
        assert rates.min() > 0.05
        assert rates.max() < 0.55


def test_the_gradient_reaches_what_is_visible_only():
    x = expression().requires_grad_()
    masked, hidden = mask_genes(x, 0.4, seeded())
    masked.sum().backward()
    assert torch.equal(x.grad, (~hidden).float())


def test_noise_has_its_standard_deviation_and_no_offset():
    x = expression()
    kept = x.clone()
    noise = add_noise(x, 0.3, seeded()) - x
    assert noise.std().item() == pytest.approx(0.3, rel=0.03)
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert noise[0].std() > 0.2
    assert torch.equal(x, kept)
    assert torch.equal(add_noise(x, 0), x)


@pytest.mark.parametrize("corrupt", [lambda x, g: mask_genes(x, 0.5, g)[0], lambda x, g: add_noise(x, 0.5, g)])
def test_randomness_comes_from_the_generator(corrupt):
    x = expression()
    before = torch.get_rng_state()
    first = corrupt(x, seeded(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(corrupt(x, seeded(1)), first)
    assert not torch.equal(corrupt(x, seeded(2)), first)
    generator = seeded(1)
    corrupt(x, generator)
    assert not torch.equal(corrupt(x, generator), first)
    # Without one, torch's own.
    torch.manual_seed(5)
    without = corrupt(x, None)
    torch.manual_seed(5)
    assert torch.equal(corrupt(x, None), without)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_type_stays(dtype):
    x = expression().to(dtype)
    assert mask_genes(x, 0.5)[0].dtype == add_noise(x, 0.5).dtype == dtype


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_share_must_lie_between_0_and_1(share):
    with pytest.raises(DataError, match="`share` must lie between 0 and 1"):
        mask_genes(expression(), share)


@pytest.mark.parametrize("sd", [-0.1, float("inf"), float("nan")])
def test_sd_must_not_be_negative(sd):
    with pytest.raises(DataError, match="`sd` must be a number from 0"):
        add_noise(expression(), sd)
