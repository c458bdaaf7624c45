"""Choose what the user left open by the amount of data; explained in ``docs/guide/recipe.md``."""

from __future__ import annotations

import math
from typing import Any, NamedTuple


class Choice(NamedTuple):
    """A value and why it was chosen."""

    value: Any
    reason: str


#: spots up to which data count as small, and from which as large (the paper has 700,000)
SMALL, LARGE = 2_000, 200_000
#: optimiser steps aimed at on small data
_SMALL_STEPS = 130


def _between(n: int, small: float, large: float) -> float:
    """Log-linear between the values for small and for large data."""
    share = min(1.0, max(0.0, math.log(max(n, 1) / SMALL) / math.log(LARGE / SMALL)))
    return small ** (1 - share) * large**share


def _batch_size(n: int) -> Choice:
    if n >= LARGE:
        return Choice(384, "the paper's batch")
    # A power of two: enough steps per epoch, enough negatives per step.
    size = 2 ** round(math.log2(max(_between(n, min(64, n / 8), 384), 8)))
    reason = f"an eighth of {n} spots, at most 64" if n < SMALL else "between 64 and the paper's 384"
    return Choice(int(min(size, max(2, n // 2))), reason)


def choose(n_spots: int, n_blocks: int) -> dict[str, Choice]:
    """Hyper-parameters for a number of spots and of encoder blocks.

    Between 2,000 and 200,000 spots, rates move log-linearly from a small-data recipe (found on 551 spots of three real
    sections) to the paper's (learning rate 1e-4, weight decay 0.2, batch 384, 10 epochs, the last block).
    """
    small = n_spots < SMALL
    batch = _batch_size(n_spots)
    steps_per_epoch = max(1, n_spots // batch.value)
    why = f"about {_SMALL_STEPS} steps, at least 10 epochs" if small else "10 to 15 passes over much data"
    epochs = max(10, round(_SMALL_STEPS / steps_per_epoch)) if small else round(_between(n_spots, 15, 10))
    return {
        "batch_size": batch,
        "epochs": Choice(epochs, why),
        "warmup_epochs": Choice(0, "as in the paper"),
        "lr": Choice(float(f"{_between(n_spots, 2e-3, 1e-4):.2g}"), "few steps need a high rate, many a low one"),
        "weight_decay": Choice(float(f"{_between(n_spots, 0.05, 0.2):.2g}"), "the paper's 0.2 for much data"),
        "views": Choice(max(1, round(_between(n_spots, 8, 1))), "augmented views matter most where spots are few"),
        "adapter_blocks": Choice(
            min(2 if n_spots < LARGE else 1, n_blocks), "the last blocks adapt, earlier ones are kept"
        ),
    }
