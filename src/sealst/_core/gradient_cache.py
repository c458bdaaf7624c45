"""Gradients of a loss over a large batch in the memory of a small one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sealst._errors import DataError

Outputs = Tensor | Sequence[Tensor]


def chunked_backward(
    forward: Callable[[Any], Outputs],
    inputs: Any,
    loss: Callable[..., Tensor],
    *,
    chunk_size: int,
    backward: Callable[[Tensor], Any] = torch.autograd.backward,
) -> Tensor:
    """Accumulate the gradients of ``loss(*forward(inputs))`` without the activations of the whole batch.

    A contrastive loss compares every spot with every other, so batches cannot be cut into parts whose gradients are
    summed. Here `forward` runs chunk by chunk without gradient, `loss` is differentiated with respect to the joined
    outputs, and every chunk runs again, with the random numbers of its first run, to carry the outputs' gradient on to
    the parameters. Only one chunk's activations are held at a time; the price is a second forward pass.

    The gradients are those of joining the outputs of all chunks in one graph. They are those of one call on the whole
    batch where `forward` treats rows independently, which batch normalisation in training mode does not: it sees
    chunks, and updates its running averages twice. Cheap parts with such layers belong into `loss`, which sees the
    whole batch.

    Source: Gao et al., *Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup*, RepL4NLP 2021.

    Parameters
    ----------
    forward
        Maps a chunk of `inputs` to a tensor, or to a tuple of tensors, with samples along the first dimension. It may
        draw from torch's own generators of the CPU, of the current CUDA device and of the devices `inputs` lie on;
        another source of randomness (numpy, a generator of its own) would differ between the two runs.
    inputs
        Tensor, or mapping or sequence of tensors, all with the samples along the first dimension; entries of None are
        passed on. No gradient through a graph that made them: only leaves may require one.
    loss
        Maps the joined outputs, one argument each, to a scalar. Parameters and further tensors used in it get their
        gradient as usual.
    chunk_size
        Samples per chunk; the last one may be smaller. A batch of one chunk runs once, as usual.
    backward
        Replaces ``loss.backward()``, e.g. ``self.manual_backward`` of a Lightning module; a factor that it applies to
        the loss reaches every gradient.

    Returns
    -------
    The loss, without graph and without such a factor.

    Raises
    ------
    DataError
        When `chunk_size` is not a whole number >= 1, `inputs` hold no sample or different numbers of them, or `forward`
        returns something else than tensors.

    Examples
    --------
    >>> layer, x = torch.nn.Linear(3, 2), torch.randn(10, 3)
    >>> value = chunked_backward(layer, x, lambda z: (z @ z.T).logsumexp(1).mean(), chunk_size=4)
    >>> layer.weight.grad.shape
    torch.Size([2, 3])
    """
    if not isinstance(chunk_size, int) or chunk_size < 1:
        raise DataError(f"`chunk_size` must be a whole number from 1, found {chunk_size!r}.")
    n = _n_rows(inputs)
    if n <= chunk_size:
        value = loss(*_as_tuple(forward(inputs)))
        backward(value)
        return value.detach()
    chunks = [_take(inputs, slice(start, start + chunk_size)) for start in range(0, n, chunk_size)]
    devices = _devices(inputs)
    parts, states = _run_without_gradient(forward, chunks, devices)
    sizes = [[len(x) for x in part] for part in parts]
    leaves = [torch.cat(part) for part in parts]
    del parts
    for leaf in leaves:
        leaf.requires_grad_(leaf.is_floating_point() or leaf.is_complex())
    value = loss(*leaves)
    backward(value)
    gradients = [_split(leaf.grad, size) for leaf, size in zip(leaves, sizes, strict=True)]
    after = _random_state(devices)
    try:
        for chunk, state, *gradient in zip(chunks, states, *gradients, strict=True):
            _set_random_state(state)
            _run_with_gradient(forward, chunk, gradient)
    finally:
        _set_random_state(after)
    return value.detach()


def _run_without_gradient(
    forward: Callable[[Any], Outputs], chunks: Sequence[Any], devices: Sequence[torch.device]
) -> tuple[list[tuple[Tensor, ...]], list[dict[torch.device, Tensor]]]:
    """Per output its parts by chunk, and per chunk the random state that it started from."""
    rows, states = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_random_state(devices))
            rows.append(_as_tuple(forward(chunk)))
    # Autocast keeps the weights it has cast, here without a graph, and would take them again in the second run.
    torch.clear_autocast_cache()
    return list(zip(*rows, strict=True)), states


def _run_with_gradient(forward: Callable[[Any], Outputs], chunk: Any, gradients: Sequence[Tensor | None]) -> None:
    if all(g is None for g in gradients):
        return
    outputs = _as_tuple(forward(chunk))
    pairs = [(x, g) for x, g in zip(outputs, gradients, strict=True) if g is not None and x.requires_grad]
    if pairs:
        torch.autograd.backward([x for x, _ in pairs], [g for _, g in pairs])


def _split(gradient: Tensor | None, sizes: Sequence[int]) -> Sequence[Tensor | None]:
    """Gradient of an output by chunk; None where the loss does not use the output."""
    return [None] * len(sizes) if gradient is None else gradient.split(list(sizes))


def _as_tuple(outputs: Outputs) -> tuple[Tensor, ...]:
    found = (outputs,) if isinstance(outputs, Tensor) else outputs
    if not isinstance(found, tuple | list) or not all(isinstance(x, Tensor) and x.ndim for x in found):
        raise DataError(
            "`forward` must return a tensor or a tuple of tensors with samples along the first dimension, found "
            f"{type(outputs).__name__}."
        )
    return tuple(found)


# --- samples ----------------------------------------------------------------------------------------------------------


def _tensors(inputs: Any) -> Iterator[Tensor]:
    if isinstance(inputs, Tensor):
        yield inputs
    elif isinstance(inputs, Mapping):
        for value in inputs.values():
            yield from _tensors(value)
    elif isinstance(inputs, tuple | list):
        for value in inputs:
            yield from _tensors(value)
    elif inputs is not None:
        raise DataError(f"`inputs` must hold tensors, found {type(inputs).__name__}.")


def _n_rows(inputs: Any) -> int:
    lengths = sorted({len(x) if x.ndim else 0 for x in _tensors(inputs)})
    if len(lengths) != 1 or lengths[0] == 0:
        raise DataError(
            f"`inputs` must be tensors with one number of samples (> 0) along the first dimension, found {lengths}."
        )
    return lengths[0]


def _take(inputs: Any, rows: slice) -> Any:
    if isinstance(inputs, Tensor):
        return inputs[rows]
    if isinstance(inputs, Mapping):
        return {key: _take(value, rows) for key, value in inputs.items()}
    return None if inputs is None else tuple(_take(value, rows) for value in inputs)


# --- random state -----------------------------------------------------------------------------------------------------


def _devices(inputs: Any) -> list[torch.device]:
    """Accelerators whose random numbers a forward pass may use."""
    found = {x.device for x in _tensors(inputs) if x.device.type != "cpu"}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found.add(torch.device("cuda", torch.cuda.current_device()))
    return sorted(found, key=str)


def _random_state(devices: Sequence[torch.device]) -> dict[torch.device, Tensor]:
    cpu = {torch.device("cpu"): torch.get_rng_state()}
    return cpu | {device: torch.get_device_module(device).get_rng_state(device) for device in devices}


def _set_random_state(state: Mapping[torch.device, Tensor]) -> None:
    for device, value in state.items():
        if device.type == "cpu":
            torch.set_rng_state(value)
        else:
            torch.get_device_module(device).set_rng_state(value, device)
