from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from sealst._core.losses.domain import balanced_weights, reverse_gradient
from sealst._errors import DataError

check = settings(max_examples=30, deadline=None)


@st.composite
def labelled(draw):
    """Organ and section of every spot, sections nested in organs."""
    n = draw(st.integers(1, 40))
    organs = draw(st.lists(st.sampled_from("kls"), min_size=n, max_size=n))
    sections = draw(st.lists(st.sampled_from("1234"), min_size=n, max_size=n))
    return np.array([organs, sections]).T


# --- gradient reversal ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [0, 0.3, 1, 2.5])
def test_values_stay_and_gradients_turn(weight):
    x = torch.randn(4, 3, requires_grad=True)
    out = reverse_gradient(x, weight)
    assert torch.equal(out, x)
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    torch.testing.assert_close(gradient, -weight * 2 * x.detach())


def test_the_classifier_learns_and_the_encoder_hides():
    torch.manual_seed(0)
    x, y = torch.randn(16, 4), torch.arange(16) % 2
    encoder, classifier = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)

    def gradients(features):
        loss = torch.nn.functional.cross_entropy(classifier(features), y)
        return torch.autograd.grad(loss, [encoder.weight, classifier.weight])

    plain, turned = gradients(encoder(x)), gradients(reverse_gradient(encoder(x), 0.5))
    torch.testing.assert_close(turned[0], -0.5 * plain[0])
    torch.testing.assert_close(turned[1], plain[1])


def test_half_precision_stays():
    x = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    out = reverse_gradient(x)
    out.sum().backward()
    assert out.dtype == x.grad.dtype == torch.bfloat16
    assert x.grad.tolist() == [-1, -1, -1]


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_weight_must_not_be_negative(weight):
    with pytest.raises(DataError, match="`weight` must be a number from 0, found"):
        reverse_gradient(torch.ones(2), weight)


# --- balanced sampling ------------------------------------------------------------------------------------------------


@check
@given(labelled())
def test_every_section_has_the_same_share(labels):
    sections = labels[:, 1]
    weights = balanced_weights(sections)
    shares = [weights[sections == s].sum() for s in np.unique(sections)]
    np.testing.assert_allclose(shares, 1 / len(shares))
    for s in np.unique(sections):
        assert len(np.unique(weights[sections == s])) == 1


@check
@given(labelled())
def test_every_organ_has_the_same_share_and_every_section_the_same_of_it(labels):
    weights = balanced_weights(labels)
    organs = np.unique(labels[:, 0])
    for organ in organs:
        inside = labels[:, 0] == organ
        assert weights[inside].sum() == pytest.approx(1 / len(organs))
        sections = np.unique(labels[inside, 1])
        for section in sections:
            share = weights[inside & (labels[:, 1] == section)].sum()
            assert share == pytest.approx(1 / len(organs) / len(sections))


@check
@given(labelled(), st.floats(0, 1))
def test_power_moves_from_uniform_to_balanced(labels, power):
    weights = balanced_weights(labels, power=power)
    assert weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(balanced_weights(labels, power=0), 1 / len(labels))
    # On the logarithm the way is straight.
    logs = power * np.log(balanced_weights(labels))
    np.testing.assert_allclose(np.log(weights) - np.log(weights[0]), logs - logs[0], atol=1e-12)


def test_power_of_a_half_counts_sections_by_the_root_of_their_size():
    labels = np.repeat(["a", "b"], [100, 4])
    weights = balanced_weights(labels, power=0.5)
    assert weights[:100].sum() / weights[100:].sum() == pytest.approx(5)


def test_equal_names_under_other_organs_are_other_sections():
    labels = np.array([["kidney", "1"], ["kidney", "2"], ["lung", "1"]], dtype=object)
    np.testing.assert_allclose(balanced_weights(labels), [1 / 4, 1 / 4, 1 / 2])


def test_numbers_serve_as_labels():
    np.testing.assert_allclose(balanced_weights(np.array([10, 9, 9])), [1 / 2, 1 / 4, 1 / 4])


@pytest.mark.parametrize("labels", [np.array(["a", None], dtype=object), np.array([1.0, np.nan])])
def test_missing_labels_are_refused(labels):
    with pytest.raises(DataError, match="`labels` has 1 missing values; name them or leave the spots out"):
        balanced_weights(labels)


@pytest.mark.parametrize("shape", [(0,), (), (2, 2, 2), (3, 0)])
def test_labels_of_another_shape_are_refused(shape):
    with pytest.raises(DataError, match=r"`labels` must have the shape \(n,\) or \(n, levels\) with at least one spot"):
        balanced_weights(np.zeros(shape))


@pytest.mark.parametrize("power", [-0.1, 1.1, float("nan")])
def test_power_must_lie_between_0_and_1(power):
    with pytest.raises(DataError, match="`power` must lie between 0 and 1"):
        balanced_weights(np.array(["a", "b"]), power=power)
