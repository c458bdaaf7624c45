from __future__ import annotations

import copy

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from sealst._core.gradient_cache import chunked_backward
from sealst._core.losses import clip_loss
from sealst._errors import DataError

check = settings(max_examples=15, deadline=None)
sizes = st.integers(2, 17)
chunk_sizes = st.integers(1, 20)


class Pair(nn.Module):
    """Two embeddings of a batch, with dropout, and a head that only the loss applies."""

    def __init__(self, dropout: float = 0.5, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 4)).to(dtype)
        self.gene = nn.Sequential(nn.Linear(3, 8), nn.Dropout(dropout), nn.Linear(8, 4)).to(dtype)
        self.head = nn.Linear(4, 3).to(dtype)
        self.temperature = nn.Parameter(torch.tensor(0.3, dtype=dtype))

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return self.image(batch["crops"]), self.gene(batch["expression"]), batch["expression"], batch["label"]

    def loss(self, image, gene, expression, label) -> torch.Tensor:
        assert label.dtype == torch.int64
        contrast = clip_loss(image, gene, temperature=self.temperature)
        return contrast + (self.head(image) - expression).square().mean() + (image.mean(0) * label.sum()).sum()


def batch_of(n: int, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(n)
    crops, expression = (torch.randn(n, d, generator=rng, dtype=dtype) for d in (6, 3))
    return {"crops": crops, "expression": expression, "label": torch.arange(n) % 2}


def whole(model: Pair, batch: dict[str, torch.Tensor], chunk_size: int) -> torch.Tensor:
    """The same chunks in one graph."""
    n = len(batch["label"])
    parts = [model({k: v[i : i + chunk_size] for k, v in batch.items()}) for i in range(0, n, chunk_size)]
    value = model.loss(*(torch.cat(part) for part in zip(*parts, strict=True)))
    value.backward()
    return value.detach()


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters()}


def assert_same_gradients(model: nn.Module, other: nn.Module, **tolerance: float) -> None:
    found, expected = gradients(model), gradients(other)
    assert all(g is not None and g.abs().max() > 0 for g in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=lambda m, name=name: f"{name}: {m}", **tolerance)


@check
@given(sizes, chunk_sizes)
def test_gradients_equal_those_of_one_graph_with_dropout(n, chunk_size):
    model, batch = Pair(), batch_of(n)
    other = copy.deepcopy(model)
    torch.manual_seed(7)
    expected, following = whole(other, batch, chunk_size), torch.rand(3)
    torch.manual_seed(7)
    found = chunked_backward(model, batch, model.loss, chunk_size=chunk_size)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    assert_same_gradients(model, other)
    # What is drawn afterwards is not what a chunk has drawn already.
    assert torch.equal(torch.rand(3), following)


@check
@given(sizes, chunk_sizes)
def test_without_dropout_chunks_change_nothing(n, chunk_size):
    model, batch = Pair(dropout=0.0), batch_of(n)
    other = copy.deepcopy(model)
    expected = whole(other, batch, n)
    torch.testing.assert_close(chunked_backward(model, batch, model.loss, chunk_size=chunk_size), expected)
    assert_same_gradients(model, other)


def test_dropout_of_the_second_run_is_that_of_the_first():
    seen: list[torch.Tensor] = []
    layer = nn.Linear(3, 3)

    def forward(x):
        dropped = nn.functional.dropout(layer(x), 0.5)
        seen.append(dropped.detach())
        return dropped

    chunked_backward(forward, torch.randn(7, 3), lambda z: z.square().sum(), chunk_size=3)
    first, second = seen[:3], seen[3:]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])


def test_gradients_add_to_those_there():
    model, batch = Pair(dropout=0.0), batch_of(9)
    chunked_backward(model, batch, model.loss, chunk_size=4)
    once = {name: g.clone() for name, g in gradients(model).items()}
    chunked_backward(model, batch, model.loss, chunk_size=4)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, 2 * once[name])


@pytest.mark.parametrize("chunk_size", [4, 20])
def test_backward_of_the_caller_scales_every_gradient(chunk_size):
    model, batch, received = Pair(dropout=0.0), batch_of(9), []
    other = copy.deepcopy(model)

    def backward(value):
        received.append(value.detach())
        (value / 8).backward()

    found = chunked_backward(model, batch, model.loss, chunk_size=chunk_size, backward=backward)
    expected = whole(other, batch, 9)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(received, [expected])
    for parameter in other.parameters():
        parameter.grad /= 8
    assert_same_gradients(model, other)


def test_under_autocast():
    model, batch = Pair(dtype=torch.float32), batch_of(11, torch.float32)
    other = copy.deepcopy(model)
    dtypes = set()

    def forward(x):
        out = model(x)
        dtypes.add(out[0].dtype)
        return out

    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(7)
        expected = whole(other, batch, 4)
        torch.clear_autocast_cache()
        torch.manual_seed(7)
        found = chunked_backward(forward, batch, model.loss, chunk_size=4)
    assert dtypes == {torch.bfloat16}
    torch.testing.assert_close(found, expected)
    # The gradient of a weight is summed over chunks in bfloat16 by the one graph, in float32 here.
    assert_same_gradients(model, other, rtol=2e-2, atol=5e-3)


def test_parts_that_the_loss_leaves_out_get_no_gradient_and_no_second_run():
    used, unused, calls = nn.Linear(3, 2), nn.Linear(3, 2), []

    def forward(x):
        calls.append(len(x))
        return used(x), unused(x)

    x = torch.randn(5, 3)
    chunked_backward(forward, x, lambda a, _: a.square().sum(), chunk_size=2)
    assert used.weight.grad is not None
    assert unused.weight.grad is None
    assert calls == [2, 2, 1] * 2

    calls.clear()
    scale = nn.Parameter(torch.ones(()))
    chunked_backward(forward, x, lambda a, _: scale * a.detach().sum(), chunk_size=2)
    assert calls == [2, 2, 1]
    torch.testing.assert_close(scale.grad, used(x).sum().detach())


def test_frozen_forward_trains_what_the_loss_holds():
    frozen, head = nn.Linear(3, 2).requires_grad_(False), nn.Linear(2, 1)
    chunked_backward(frozen, torch.randn(5, 3), lambda z: head(z).square().sum(), chunk_size=2)
    assert head.weight.grad.abs().max() > 0
    assert frozen.weight.grad is None


def test_one_chunk_runs_once():
    layer, calls = nn.Linear(3, 2), []

    def forward(x):
        calls.append(len(x))
        return layer(x)

    chunked_backward(forward, torch.randn(5, 3), lambda z: z.square().sum(), chunk_size=5)
    assert calls == [5]
    assert layer.weight.grad is not None


def test_no_activation_of_another_chunk_is_held():
    alive, most = [0], [0]

    class Count(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            alive[0] += len(x) if x.requires_grad else 0
            most[0] = max(most[0], alive[0])
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            alive[0] -= len(grad)
            return grad

    layer = nn.Linear(3, 2)
    chunked_backward(lambda x: Count.apply(layer(x)), torch.randn(10, 3), lambda z: z.square().sum(), chunk_size=4)
    assert (alive, most) == ([0], [4])


def test_inputs_of_nested_tensors_and_none_and_outputs_with_more_rows():
    layer, x, y = nn.Linear(3, 2, dtype=torch.float64), *torch.randn(2, 7, 3, dtype=torch.float64)
    other = copy.deepcopy(layer)

    def forward(chunk, layer=layer):
        (a, b), nothing = chunk["views"], chunk["mask"]
        assert nothing is None
        return torch.stack([layer(a), layer(b)], 1).flatten(0, 1)

    def loss(z):
        return torch.linalg.vector_norm(z[:, None] - z + 1e-3, dim=2).sum()

    chunked_backward(forward, {"views": [x, y], "mask": None}, loss, chunk_size=3)
    loss(forward({"views": (x, y), "mask": None}, other)).backward()
    assert_same_gradients(layer, other)


def test_inputs_that_are_leaves_get_their_gradient():
    x = torch.randn(7, 3, requires_grad=True)
    chunked_backward(lambda c: c.square(), x, lambda z: z.sum(), chunk_size=3)
    torch.testing.assert_close(x.grad, 2 * x.detach())


def test_random_state_is_restored_after_an_error():
    calls = []

    def forward(x):
        calls.append(torch.rand(1))
        if len(calls) > 3:
            raise ValueError("second run")
        return x * torch.ones(1, requires_grad=True)

    x = torch.randn(5, 1)
    torch.manual_seed(3)
    expected = [torch.rand(1) for _ in range(4)][3]
    torch.manual_seed(3)
    with pytest.raises(ValueError, match="second run"):
        chunked_backward(forward, x, lambda z: z.sum(), chunk_size=2)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_dropout_on_cuda():
    model, batch = Pair().cuda(), {k: v.cuda() for k, v in batch_of(11).items()}
    other = copy.deepcopy(model)
    torch.manual_seed(7)
    expected = whole(other, batch, 4)
    torch.manual_seed(7)
    torch.testing.assert_close(chunked_backward(model, batch, model.loss, chunk_size=4), expected)
    assert_same_gradients(model, other)


@pytest.mark.parametrize("chunk_size", [0, -2, 2.5])
def test_chunk_size_that_is_none_is_refused(chunk_size):
    with pytest.raises(DataError, match="`chunk_size` must be a whole number from 1"):
        chunked_backward(nn.Identity(), torch.ones(3, 2), torch.sum, chunk_size=chunk_size)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((torch.ones(3, 2), torch.ones(4, 2)), r"one number of samples .* found \[3, 4\]"),
        (torch.ones(0, 2), r"one number of samples .* found \[0\]"),
        (torch.ones(()), r"one number of samples .* found \[0\]"),
        ({}, r"one number of samples .* found \[\]"),
        ({"section": "A1"}, "`inputs` must hold tensors, found str"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs, message):
    with pytest.raises(DataError, match=message):
        chunked_backward(nn.Identity(), inputs, torch.sum, chunk_size=2)


@pytest.mark.parametrize("output", [None, torch.ones(()), (torch.ones(2), 3.0)])
@pytest.mark.parametrize("chunk_size", [2, 9])
def test_outputs_that_are_no_rows_are_refused(output, chunk_size):
    with pytest.raises(DataError, match="`forward` must return a tensor or a tuple of tensors"):
        chunked_backward(lambda _: output, torch.ones(5, 2), torch.sum, chunk_size=chunk_size)
