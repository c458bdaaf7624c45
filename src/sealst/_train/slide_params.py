"""How to fit a slide model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sealst._errors import DataError
from sealst._validate import check_fraction, check_positive, from_yaml, resolve_params, whole


@dataclass(frozen=True)
class SlideParams:
    """Fitting of a slide model, see `sealst.tl.fit_slide`."""

    #: passes over the training slides at most
    epochs: int = 50
    #: learning rate (AdamW)
    lr: float = 3e-4
    weight_decay: float = 1e-3
    dropout: float = 0.25
    #: width that embeddings are brought to before pooling
    hidden: int = 256
    #: width of the attention
    attention: int = 128
    #: epochs without a lower loss of the inner validation patients after which fitting stops, with the best weights;
    #: None trains all epochs on all training slides
    patience: int | None = 10
    #: slides per step; None is 8, and 16 for survival, where a step compares its slides with each other
    batch_size: int | None = None
    #: tiles of a training slide that a step looks at, drawn anew every time; prediction always looks at all
    max_tiles: int = 4096
    #: whether classes count the same in the loss, however rare they are; probabilities are then of balanced classes
    balance: bool = True
    #: largest norm of the gradient
    clip_norm: float = 1.0
    #: megabytes of embeddings kept in memory between epochs; what does not fit is read again
    cache_mb: int = 4096

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            # numpy scalars would not go into JSON later on.
            object.__setattr__(self, name, value.item() if isinstance(value, np.generic) else value)
        for name in ("lr", "clip_norm"):
            check_positive(f"params.{name}", getattr(self, name))
        for name in ("epochs", "hidden", "attention", "max_tiles"):
            whole(f"params.{name}", getattr(self, name), least=1)
        for name in ("patience", "batch_size"):
            if getattr(self, name) is not None:
                whole(f"params.{name}", getattr(self, name), least=1)
        check_fraction("params.dropout", self.dropout)
        for name in ("weight_decay", "cache_mb"):
            if not getattr(self, name) >= 0:
                raise DataError(f"`params.{name}` must be 0 or more, found {getattr(self, name)!r}.")
        if self.dropout == 1:
            raise DataError("`params.dropout` of 1 leaves nothing to learn from; use less, such as 0.25.")


def slide_params(given: SlideParams | Mapping[str, Any] | str | Path | None) -> SlideParams:
    """Parameters from themselves, from their fields, or from a YAML file with them."""
    return resolve_params(SlideParams, from_yaml(given), name="params")
