from __future__ import annotations

import itertools

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from scipy.special import log_softmax, logsumexp, softmax
from torch.distributions import Normal, kl_divergence

from sealst._core.losses import registry as losses
from sealst._core.losses.registry import CONTRASTIVE, COUNT_RECONSTRUCTION, RECONSTRUCTION, kl_with_flows
from sealst._errors import DataError

BATCH_STATISTICS = ("barlow_std_mse", "barlow", "pearson_genes", "mmd", "pls")
#: what they take from the truth is constant to the gradient
CONSTANT_TRUTH = ("mmd", "pls")
ELEMENTWISE = ("mse", "huber", "l1")
LOSSES = [pytest.param(loss, id=name) for name, loss in (CONTRASTIVE | RECONSTRUCTION).items()]

check = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 2**31)


@st.composite
def matrices(draw, n=1, min_rows=2, masked=False):
    """`n` matrices of one shape, in steps of 1/4: a column is constant or varies well above rounding."""
    shape = (draw(st.integers(min_rows, 7)), draw(st.integers(1, 6)))
    values = [draw(hnp.arrays(np.float64, shape, elements=st.integers(-20, 20))) / 4 for _ in range(n)]
    return [*values, draw(hnp.arrays(bool, shape))] if masked else values


def randn(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def correlation(a, b):
    """Pearson r, 0 where one side is constant."""
    return np.corrcoef(a, b)[0, 1] if np.ptp(a) and np.ptp(b) else 0.0


def assume_distinct_axes(loss, target):
    """Leave out truths two of whose axes explain the same: there the axes, and so `pls`, are a matter of choice."""
    if loss is losses.pls:
        explained = np.linalg.svd(target - target.mean(axis=0), compute_uv=False) ** 2
        explained = explained[explained > 1e-9 * explained[0]]
        assume((-np.diff(explained) > 1e-3 * explained[:1]).all())


def takes_truth_as_constant(loss):
    return loss in [RECONSTRUCTION[name] for name in CONSTANT_TRUTH]


def cosine_matrix(a, b):
    def cosine(x, y):
        return 0.0 if not x.any() or not y.any() else x @ y / np.linalg.norm(x) / np.linalg.norm(y)

    return np.array([[cosine(x, y) for y in b] for x in a])


# --- each loss equals a reference -------------------------------------------------------------------------------------


@check
@given(matrices(2), st.sampled_from([0.05, 0.2, 1.0]))
def test_clip_loss_equals_loop(pair, temperature):
    logits = cosine_matrix(*pair) / temperature
    terms = [logsumexp(logits[i]) + logsumexp(logits[:, i]) - 2 * logits[i, i] for i in range(len(logits))]
    found = losses.clip_loss(*map(torch.tensor, pair), temperature=temperature)
    np.testing.assert_allclose(found.item(), np.mean(terms) / 2, rtol=1e-9, atol=1e-9)


@check
@given(matrices(2), st.sampled_from([0.05, 0.2, 1.0]))
def test_soft_clip_loss_equals_loop(pair, temperature):
    image, gene = pair
    targets = softmax((cosine_matrix(image, image) + cosine_matrix(gene, gene)) / 2 / temperature, axis=1)
    logits = cosine_matrix(image, gene) / temperature
    rows, columns = log_softmax(logits, axis=1), log_softmax(logits, axis=0)
    total = 0.0
    for i, j in itertools.product(range(len(image)), repeat=2):
        total -= targets[i, j] * (rows[i, j] + columns[j, i]) / 2
    found = losses.soft_clip_loss(*map(torch.tensor, pair), temperature=temperature)
    np.testing.assert_allclose(found.item(), total / len(image), rtol=1e-9, atol=1e-9)


@check
@given(matrices(2), st.sampled_from([0.05, 0.2, 1.0]), st.sampled_from([-10.0, 0.0, 1.5]))
def test_siglip_loss_equals_loop(pair, temperature, bias):
    logits = cosine_matrix(*pair) / temperature + bias
    total = 0.0
    for i, j in itertools.product(range(len(logits)), repeat=2):
        total += np.logaddexp(0, -logits[i, j] if i == j else logits[i, j])
    found = losses.siglip_loss(*map(torch.tensor, pair), temperature=temperature, bias=bias)
    np.testing.assert_allclose(found.item(), total / len(logits), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "reference"), [("mse", F.mse_loss), ("l1", F.l1_loss), ("huber", lambda p, t: F.huber_loss(p, t, delta=1))]
)
@check
@given(data=matrices(2, min_rows=1, masked=True))
def test_elementwise_losses_equal_torch_on_measured_entries(name, reference, data):
    pred, target, mask = map(torch.tensor, data)
    torch.testing.assert_close(RECONSTRUCTION[name](pred, target), reference(pred, target))
    expected = reference(pred[mask], target[mask]) if mask.any() else torch.tensor(0.0, dtype=torch.float64)
    torch.testing.assert_close(RECONSTRUCTION[name](pred, target, mask), expected)


def test_huber_delta():
    pred, target = randn(0, 5, 3), 3 * randn(1, 5, 3)
    torch.testing.assert_close(losses.huber(pred, target, delta=0.3), F.huber_loss(pred, target, delta=0.3))
    with pytest.raises(DataError, match="`delta` must be a positive number"):
        losses.huber(pred, target, delta=0)


@check
@given(matrices(2, min_rows=1, masked=True))
def test_pearson_equals_corrcoef_of_every_spot(data):
    pred, target, mask = data
    for m in (np.ones_like(mask), mask):
        spots = [1 - correlation(p[k], t[k]) for p, t, k in zip(pred, target, m, strict=True) if k.sum() >= 2]
        found = losses.pearson(torch.tensor(pred), torch.tensor(target), torch.tensor(m))
        np.testing.assert_allclose(found.item(), np.mean(spots) if spots else 0.0, atol=1e-9)


@check
@given(matrices(2, masked=True))
def test_pearson_genes_equals_corrcoef_of_every_gene(data):
    pred, target, mask = data
    for m in (np.ones_like(mask), mask):
        genes = [1 - correlation(pred[k, g], target[k, g]) for g, k in enumerate(m.T) if k.sum() >= 2]
        found = losses.pearson_genes(torch.tensor(pred), torch.tensor(target), torch.tensor(m))
        np.testing.assert_allclose(found.item(), np.mean(genes) if genes else 0.0, atol=1e-9)


@check
@given(matrices(2, masked=True))
def test_barlow_std_mse_equals_corrcoef_of_every_gene(data):
    pred, target, mask = data
    for m in (np.ones_like(mask), mask):
        diagonal = sum(
            (1 - correlation(pred[k, g], target[k, g])) ** 2 for g, k in enumerate(m.T) if k.sum() >= 2
        )  # fmt: skip
        error = np.mean((pred[m] - target[m]) ** 2) if m.any() else 0.0
        found = losses.barlow_std_mse(torch.tensor(pred), torch.tensor(target), torch.tensor(m))
        np.testing.assert_allclose(found.item(), 0.05 * diagonal + 5 * error, rtol=1e-9, atol=1e-9)


def test_barlow_std_mse_weights():
    pred, target = randn(0, 6, 4), randn(1, 6, 4)
    torch.testing.assert_close(
        losses.barlow_std_mse(pred, target, corr_weight=0, mse_weight=1), F.mse_loss(pred, target)
    )
    only_corr = losses.barlow_std_mse(pred, target, corr_weight=1, mse_weight=0)
    torch.testing.assert_close(only_corr, losses.barlow_std_mse(3 * pred + 1, target, corr_weight=1, mse_weight=0))
    assert only_corr > 0.1


@check
@given(matrices(2), st.sampled_from([0.0, 5e-3, 1.0]))
def test_barlow_equals_loop(pair, off_diagonal):
    pred, target = pair
    total = 0.0
    for g, h in itertools.product(range(pred.shape[1]), repeat=2):
        r = correlation(pred[:, g], target[:, h])
        total += (1 - r) ** 2 if g == h else off_diagonal * r**2
    found = losses.barlow(torch.tensor(pred), torch.tensor(target), off_diagonal=off_diagonal)
    np.testing.assert_allclose(found.item(), total, rtol=1e-9, atol=1e-9)


@check
@given(matrices(2, masked=True))
def test_barlow_with_mask_equals_loop(data):
    pred, target, mask = data

    def standardised(x, k):
        z = np.zeros(len(x))
        if k.any() and np.ptp(x[k]):
            z[k] = (x[k] - x[k].mean()) / x[k].std()
        return z

    total = 0.0
    for g, h in itertools.product(range(pred.shape[1]), repeat=2):
        both = mask[:, g] & mask[:, h]
        if both.sum() >= 2:
            r = np.mean((standardised(pred[:, g], mask[:, g]) * standardised(target[:, h], mask[:, h]))[both])
            total += (1 - r) ** 2 if g == h else 5e-3 * r**2
    found = losses.barlow(*map(torch.tensor, data))
    np.testing.assert_allclose(found.item(), total, rtol=1e-9, atol=1e-9)


@check
@given(matrices(2, min_rows=1), seeds)
def test_kl_with_flows_equals_torch_distributions(data, seed):
    mu, logvar = torch.tensor(data[0]), torch.tensor(data[1])
    log_det = randn(seed, len(mu))
    kl = kl_divergence(Normal(mu, (logvar / 2).exp()), Normal(torch.zeros_like(mu), 1.0)).sum(1)
    torch.testing.assert_close(kl_with_flows(mu, logvar, log_det), (kl - log_det).mean())


# --- what every loss must keep ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
@check
@given(data=matrices(2), seed=seeds)
def test_order_of_the_batch_changes_nothing(loss, data, seed):
    assume_distinct_axes(loss, data[1])
    a, b = map(torch.tensor, data)
    order = torch.randperm(len(a), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(loss(a[order], b[order]), loss(a, b))


# A distribution does not tell which prediction belongs to which spot.
@pytest.mark.parametrize("loss", [p for p in LOSSES if p.id != "mmd"])
@pytest.mark.parametrize("seed", range(5))
def test_perfect_match_has_the_smallest_loss(loss, seed):
    x = randn(seed, 4, 3)
    by_order = {order: loss(x[list(order)], x).item() for order in itertools.permutations(range(4))}
    right = by_order.pop((0, 1, 2, 3))
    assert right < min(by_order.values())


@pytest.mark.parametrize("loss", [p for p in LOSSES if p.id in RECONSTRUCTION and p.id != "barlow"])
def test_perfect_reconstruction_costs_nothing(loss):
    x = randn(0, 6, 5, dtype=torch.float32)
    assert loss(x, x).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_equals_finite_differences(loss):
    a, b = randn(0, 4, 5).requires_grad_(), randn(1, 4, 5).requires_grad_(not takes_truth_as_constant(loss))
    # Huber's second derivative jumps at delta, L1's first at 0; random values meet neither.
    assert torch.autograd.gradcheck(loss, (a, b))


@pytest.mark.parametrize("loss", [p for p in LOSSES if p.id in RECONSTRUCTION])
def test_gradient_with_mask_equals_finite_differences(loss):
    a, b = randn(0, 5, 4).requires_grad_(), randn(1, 5, 4).requires_grad_(not takes_truth_as_constant(loss))
    mask = randn(2, 5, 4) > -0.5
    assert torch.autograd.gradcheck(lambda x, y: loss(x, y, mask), (a, b))


def test_kl_gradient_equals_finite_differences():
    inputs = [randn(i, 3, 4).requires_grad_() for i in range(2)] + [randn(2, 3).requires_grad_()]
    assert torch.autograd.gradcheck(kl_with_flows, inputs)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_computed_in_float32(loss, half):
    a, b = randn(0, 8, 16).to(half).requires_grad_(), randn(1, 8, 16).to(half)
    found = loss(a, b)
    assert found.dtype == torch.float32
    assert torch.equal(found, loss(a.float(), b.float()))
    found.backward()
    assert a.grad.dtype == half
    assert torch.isfinite(a.grad).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_autocast_does_not_reach_the_loss(loss):
    a, b = randn(0, 8, 16, dtype=torch.float32), randn(1, 8, 16, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a @ b.T).dtype == torch.bfloat16
        inside = loss(a, b)
    assert torch.equal(inside, loss(a, b))


def test_kl_of_half_precision_is_computed_in_float32():
    mu, logvar, log_det = randn(0, 8, 16).half(), randn(1, 8, 16).half(), randn(2, 8).half()
    found = kl_with_flows(mu, logvar, log_det)
    assert found.dtype == torch.float32
    assert torch.equal(found, kl_with_flows(mu.float(), logvar.float(), log_det.float()))


@pytest.mark.parametrize("loss", LOSSES)
def test_keywords_work_like_positions(loss):
    a, b = randn(0, 4, 5), randn(1, 4, 5)
    names = ("image", "gene") if loss in CONTRASTIVE.values() else ("pred", "target")
    assert torch.equal(loss(**dict(zip(names, (a, b), strict=True))), loss(a, b))


# --- masks, constants ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [p for p in LOSSES if p.id in RECONSTRUCTION])
@check
@given(data=matrices(2), seed=seeds)
def test_gene_mask_equals_dropping_the_genes(loss, data, seed):
    pred, target = map(torch.tensor, data)
    mask = randn(seed, pred.shape[1]) > 0
    mask[0] = True
    assume_distinct_axes(loss, data[1][:, mask.numpy()])
    expected = loss(pred[:, mask], target[:, mask])
    unmeasured = torch.where(mask, target, torch.nan)
    torch.testing.assert_close(loss(pred, unmeasured, mask), expected)
    torch.testing.assert_close(loss(pred, unmeasured, mask.expand(pred.shape)), expected)


@pytest.mark.parametrize("loss", [p for p in LOSSES if p.id in RECONSTRUCTION])
def test_unmeasured_entries_get_no_gradient(loss):
    # Enough of both that no correlation is over two entries, where it is 1 or -1 whatever they are.
    pred, target = randn(0, 20, 15).requires_grad_(), randn(1, 20, 15)
    mask = randn(2, 20, 15) > -0.5
    loss(pred, torch.where(mask, target, torch.nan), mask).backward()
    assert (pred.grad[~mask] == 0).all()
    assert (pred.grad[mask] != 0).all()


@pytest.mark.parametrize("shape", [(4,), (6, 4)])
@pytest.mark.parametrize("loss", [p for p in LOSSES if p.id in RECONSTRUCTION])
def test_nothing_measured_gives_zero_with_zero_gradient(loss, shape):
    pred = randn(0, 6, 4, dtype=torch.float32).requires_grad_()
    found = loss(pred, torch.full((6, 4), torch.nan), torch.zeros(shape, dtype=torch.bool))
    found.backward()
    assert found.item() == 0
    assert (pred.grad == 0).all()


@pytest.mark.parametrize("constant", ["pred", "target", "both", "all"])
@pytest.mark.parametrize("loss", LOSSES)
def test_constants_give_finite_values_and_gradients(loss, constant):
    a, b = randn(0, 6, 4, dtype=torch.float32), randn(1, 6, 4, dtype=torch.float32)
    if constant in ("pred", "both"):
        a[:, 0], a[0] = 0.1, 0.1
    if constant in ("target", "both"):
        b[:, 0], b[0] = -0.3, -0.3
    if constant == "all":
        a[:], b[:] = 0, 0
    a.requires_grad_()
    found = loss(a, b)
    found.backward()
    assert torch.isfinite(found)
    assert torch.isfinite(a.grad).all()
    assert a.grad.abs().max() < 1e4


def test_constant_gene_has_correlation_zero():
    pred, target = randn(0, 8, 3).requires_grad_(), randn(1, 8, 3)
    target[:, 1] = 0.7
    found = losses.barlow_std_mse(pred, target, corr_weight=1, mse_weight=0)
    found.backward()
    others = losses.barlow_std_mse(pred[:, [0, 2]], target[:, [0, 2]], corr_weight=1, mse_weight=0)
    torch.testing.assert_close(found, others + 1)
    torch.testing.assert_close(pred.grad[:, 1], torch.zeros(8, dtype=torch.float64))
    assert (pred.grad[:, 0] != 0).all()


def test_a_constant_prediction_is_pulled_towards_the_truth():
    pred, target = torch.zeros(8, 1, dtype=torch.float64).requires_grad_(), randn(1, 8, 1)
    losses.barlow_std_mse(pred, target, corr_weight=1, mse_weight=0).backward()
    assert correlation(-pred.grad[:, 0].numpy(), target[:, 0].numpy()) == pytest.approx(1)


def test_correlation_term_is_a_sum_over_measured_genes():
    pred, target = randn(0, 8, 5), randn(1, 8, 5)
    once = losses.barlow_std_mse(pred, target, mse_weight=0)
    twice = losses.barlow_std_mse(pred.repeat(1, 2), target.repeat(1, 2), mse_weight=0)
    torch.testing.assert_close(twice, 2 * once)
    half = torch.tensor([True] * 5 + [False] * 5)
    torch.testing.assert_close(losses.barlow_std_mse(pred.repeat(1, 2), target.repeat(1, 2), half, mse_weight=0), once)


# --- contrastive behaviour --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", CONTRASTIVE.values(), ids=CONTRASTIVE)
def test_length_of_embeddings_changes_nothing(loss):
    image, gene = randn(0, 6, 4), randn(1, 6, 4)
    scale = torch.linspace(0.5, 20, 6, dtype=torch.float64)[:, None]
    torch.testing.assert_close(loss(scale * image, gene / scale), loss(image, gene))


@pytest.mark.parametrize("loss", CONTRASTIVE.values(), ids=CONTRASTIVE)
def test_modalities_are_symmetric(loss):
    image, gene = randn(0, 6, 4), randn(1, 6, 4)
    torch.testing.assert_close(loss(image, gene), loss(gene, image))


@pytest.mark.parametrize("loss", CONTRASTIVE.values(), ids=CONTRASTIVE)
def test_temperature_can_be_learned(loss):
    image, gene = randn(0, 6, 4), randn(1, 6, 4)
    temperature = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: loss(image, gene, temperature=t), (temperature,))
    torch.testing.assert_close(loss(image, gene, temperature=temperature), loss(image, gene, temperature=0.2))


def test_siglip_bias_can_be_learned():
    bias = torch.tensor(-3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda b: losses.siglip_loss(randn(0, 5, 3), randn(1, 5, 3), bias=b), (bias,))


def test_clip_loss_of_equal_embeddings_is_chance():
    z = torch.ones(8, 4)
    assert losses.clip_loss(z, z).item() == pytest.approx(np.log(8), rel=1e-6)


def test_soft_targets_do_not_separate_twins():
    # Spots 0 and 1 look and express the same: hard targets still pay log 2 for each.
    z = torch.eye(4, dtype=torch.float64)
    z[1] = z[0]
    hard, soft = losses.clip_loss(z, z, temperature=0.01), losses.soft_clip_loss(z, z, temperature=0.01)
    assert hard.item() == pytest.approx(np.log(2) / 2, rel=1e-6)
    twins_swapped = losses.soft_clip_loss(z, z[[1, 0, 2, 3]], temperature=0.01)
    torch.testing.assert_close(soft, twins_swapped)
    assert losses.soft_clip_loss(z, z[[2, 1, 0, 3]], temperature=0.01) > soft + 1


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [p for p in LOSSES if p.id in (*CONTRASTIVE, *BATCH_STATISTICS)])
def test_batch_of_one_is_refused(loss):
    with pytest.raises(DataError, match=r"needs at least 2 spots in the batch, found 1\. Raise the batch size"):
        loss(torch.zeros(1, 4), torch.zeros(1, 4))


@pytest.mark.parametrize("name", [*ELEMENTWISE, "pearson"])
def test_batch_of_one_is_fine_without_batch_statistics(name):
    x = randn(0, 1, 4)
    assert RECONSTRUCTION[name](x, x).item() == pytest.approx(0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shapes", [((4, 3), (4, 2)), ((4, 3), (3, 3)), ((4,), (4,)), ((4, 3), (4,))])
def test_shapes_that_do_not_fit_are_refused(loss, shapes):
    with pytest.raises(DataError, match=r"must (have one shape|be embeddings of one shape) \(B, .\), found \(4"):
        loss(*(torch.zeros(s) for s in shapes))


@pytest.mark.parametrize("mask", [torch.ones(3), torch.ones(4, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)])
@pytest.mark.parametrize("loss", [p for p in LOSSES if p.id in RECONSTRUCTION])
def test_bad_masks_are_refused(loss, mask):
    with pytest.raises(DataError, match=r"`mask` must be bool of shape \(3,\) or \(4, 3\), found torch\."):
        loss(torch.zeros(4, 3), torch.zeros(4, 3), mask)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize("loss", CONTRASTIVE.values(), ids=CONTRASTIVE)
def test_temperature_must_be_positive(loss, temperature):
    with pytest.raises(DataError, match="`temperature` must be a positive number"):
        loss(torch.eye(3), torch.eye(3), temperature=temperature)


@pytest.mark.parametrize("log_det", [torch.zeros(()), torch.zeros(3, 2), torch.zeros(2)])
def test_kl_refuses_shapes_that_do_not_fit(log_det):
    with pytest.raises(DataError, match=r"`log_det` the shape \(B,\), found \(3, 2\), \(3, 2\) and"):
        kl_with_flows(torch.zeros(3, 2), torch.zeros(3, 2), log_det)


def test_registry_names():
    assert set(CONTRASTIVE) == {"clip", "soft_clip", "siglip"}
    assert set(RECONSTRUCTION) == {
        "barlow_std_mse",
        "mse",
        "pearson",
        "barlow",
        "huber",
        "l1",
        "pearson_genes",
        "mmd",
        "pls",
    }
    assert set(COUNT_RECONSTRUCTION) == {"nb"}
    # One parameter of training names either.
    assert not set(COUNT_RECONSTRUCTION) & set(RECONSTRUCTION)
