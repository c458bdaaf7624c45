"""Expression of each patch of a crop, learned from spots that are sums over many: weak supervision."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from sealst._core.scores.probes import within_sections

#: directions of the spots' embeddings in which coefficients are tuned; the others stay as the linear readout has them
_COMPONENTS = 96
#: patterns of genes that are tuned, where the linear readout is of full rank
_MAX_RANK = 32
_BATCH, _RATE, _STEPS = 64, 3e-3, 300
#: how strongly coefficients are held to those of the linear readout, and offsets of sections to none
_HELD, _LEVEL = 10.0, 1e-2
#: logarithm of the most that a patch is given, in counts per 10,000
LOG_MOST = float(np.log(1e4))
#: how much less log1p changes than the logarithm, at least; near 0 a gene's slope would have no bounds
_LEAST_SLOPE = 0.2


def tune_local(
    tokens: np.ndarray,
    shares: np.ndarray,
    truth: np.ndarray,
    coef: np.ndarray,
    *,
    sections: np.ndarray,
    known: np.ndarray | None = None,
    epochs: int | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    tick: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Fit ``exp(token @ weight + bias)``, counts per 10,000, whose mean over a spot's tokens is what was measured.

    The loss is the squared error of log1p of these means, every gene by its deviation within sections, and each section
    with a level of its own for every gene. It begins with a linear readout of the spots' mean tokens, is held to it,
    and tunes how much of the readout's patterns of genes a token has: of 2,000 genes on 551 spots, those that are tuned
    one by one follow their noise.

    Parameters
    ----------
    tokens
        Tokens of every spot, (n, tokens, width), also float16.
    shares
        Share of a spot's area that lies on each of its tokens, (n, tokens).
    truth
        log1p of counts per 10,000, (n, genes).
    coef
        Of the linear readout of log1p-CP10k, (width, genes).
    sections
        Section of every spot, (n,).
    known
        bool (n, genes): whether a spot's section measures a gene. None where all do.
    epochs, seed, device
        How often each spot is seen (by default so often that there are 300 steps), in which order, and where.
    tick
        Called after every batch, with the number of its spots, and of all spots in all epochs.

    Returns
    -------
    Weight (width, genes) and bias (genes,), float32; of the mean level of the sections.
    """
    if epochs is None:
        epochs = max(2, -(-_STEPS // -(-len(truth) // _BATCH)))
    where = device or torch.device("cpu")
    shares = shares / shares.sum(axis=1, keepdims=True)
    mean = spot_means(tokens, shares)
    centred = within_sections(mean, sections)
    centred -= centred.mean(axis=0)
    centre, scale = mean.mean(axis=0), np.maximum(centred.std(axis=0), 1e-6)
    # Coordinates in which spots vary alike in all directions, half way: steps are then of one size.
    _, size, directions = np.linalg.svd(centred / scale, full_matrices=False)
    n = int(min(_COMPONENTS, (size > 1e-3 * size[0]).sum()))
    size = size[:n] / np.sqrt(len(mean))
    to = directions[:n].T / np.sqrt(size)
    back = directions[:n] * np.sqrt(size)[:, None]
    x = np.empty((*tokens.shape[:2], n), dtype=np.float32)
    for start in range(0, len(x), 1024):
        part = slice(start, start + 1024)
        x[part] = (tokens[part].astype(np.float32) - centre) / scale @ to
    weight, bias = _tuned(
        x, shares, truth, back @ (coef * scale[:, None]), sections=sections, known=known, epochs=epochs, seed=seed,
        where=where, tick=tick,
    )  # fmt: skip
    weight = to @ weight / scale[:, None]
    return weight.astype(np.float32), (bias - centre @ weight).astype(np.float32)


def spot_means(tokens: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Means (n, width) of the tokens (n, tokens, width) of spots, weighted by shares (n, tokens) that sum to 1."""
    out = np.empty((len(tokens), tokens.shape[2]), dtype=np.float32)
    for start in range(0, len(out), 1024):
        part = slice(start, start + 1024)
        out[part] = np.einsum("nt,ntd->nd", shares[part], tokens[part].astype(np.float32))
    return out


def _tuned(
    x: np.ndarray,
    shares: np.ndarray,
    truth: np.ndarray,
    start: np.ndarray,
    *,
    sections: np.ndarray,
    known: np.ndarray | None,
    epochs: int,
    seed: int,
    where: torch.device,
    tick: Callable[[int, int], None] | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias in the coordinates of `x`."""
    _, number = np.unique(sections, return_inverse=True)
    deviation = np.maximum(within_sections(truth, sections).std(axis=0), 0.05)
    counts = np.expm1(truth)
    level = np.maximum(counts.mean(axis=0) if known is None else _known_mean(counts, known), 0.02)
    begun = (start / np.maximum(level / (1 + level), _LEAST_SLOPE)).astype(np.float32)
    # What genes have in common, as the linear readout has it: single ones are too noisy to be tuned one by one.
    _, size, shared = np.linalg.svd(begun, full_matrices=False)
    shared = shared[: min(_MAX_RANK, int((size > 1e-4 * size[0]).sum()))]
    programs = torch.from_numpy(np.ascontiguousarray(shared)).to(where)
    begun_in = torch.from_numpy(np.ascontiguousarray(begun @ shared.T)).to(where)
    weight = begun_in.clone().requires_grad_()
    bias = torch.from_numpy(np.log(level).astype(np.float32)).to(where).requires_grad_()
    offset = torch.zeros((number.max() + 1, truth.shape[1]), device=where, requires_grad=True)
    arrays = (x, shares.astype(np.float32), truth.astype(np.float32), number)
    rows, share, y, of = (torch.from_numpy(np.ascontiguousarray(a)) for a in arrays)
    unit = torch.from_numpy((1 / deviation).astype(np.float32)).to(where)
    mask = None if known is None else torch.from_numpy(known.astype(np.float32))
    optimizer = torch.optim.Adam([weight, bias, offset], lr=_RATE)
    steps = epochs * -(-len(x) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for some in torch.randperm(len(x), generator=order).split(_BATCH):
            each = (rows[some].to(where) @ weight @ programs + bias).clamp(max=LOG_MOST).exp()
            summed = torch.einsum("nt,ntg->ng", share[some].to(where), each) * offset[of[some].to(where)].exp()
            error = ((torch.log1p(summed) - y[some].to(where)) * unit).square()
            loss = error.mean() if mask is None else (error * mask[some].to(where)).mean()
            loss = loss + _HELD * (weight - begun_in).square().mean() + _LEVEL * offset.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if tick is not None:
                tick(len(some), epochs * len(x))
    share_of = np.bincount(number) / len(number)
    bias = bias.detach().cpu().double().numpy() + share_of @ offset.detach().cpu().double().numpy()
    return weight.detach().cpu().double().numpy() @ shared, bias


def _known_mean(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    return np.asarray((values * known).sum(axis=0) / np.maximum(known.sum(axis=0), 1))
