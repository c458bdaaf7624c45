"""How to train and to fit; what the user leaves open is chosen from the amount of data (``docs/guide/recipe.md``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sealst._core.losses.registry import CONTRASTIVE, COUNT_RECONSTRUCTION, RECONSTRUCTION
from sealst._data.augment import AUGMENTATIONS
from sealst._errors import DataError
from sealst._keys import Keys
from sealst._settings import settings
from sealst._validate import (
    check_choice,
    check_fields,
    check_fraction,
    check_positive,
    from_yaml,
    resolve_params,
    whole,
)


@dataclass(frozen=True)
class TrainParams:
    """Training of the SEAL model; a field left at None is chosen from the number of spots (see the recipe page)."""

    #: passes over the spots in the alignment stage
    epochs: int | None = None
    #: passes of the gene autoencoder alone, before alignment
    warmup_epochs: int | None = None
    #: spots per step, over all devices; also the pool of the contrastive loss
    batch_size: int | None = None
    #: peak learning rate of the alignment stage (AdamW, cosine schedule)
    lr: float | None = None
    #: learning rate of the warm-up stage
    warmup_lr: float = 5e-4
    weight_decay: float | None = None
    #: augmented versions of each crop in the trunk cache, the crop itself included
    views: int | None = None
    #: ``"none"``; ``"soft"`` (flips, rotations, mild colour jitter); ``"stain"`` (flips, rotations, haematoxylin and
    #: eosin varied separately, after Tellez et al. 2018, for sections of several laboratories or scanners); ``"hard"``
    #: (all of these, Gaussian blur and erasing)
    augmentation: str = "soft"
    #: ``"trunk"`` caches the frozen blocks' output below ``settings.cache_dir``, where later runs find it (see
    #: `sealst.tl.clear_cache`); ``"none"`` runs the whole encoder each step; ``"auto"`` chooses by disk, epochs and
    #: the number of adapted blocks
    cache: str = "auto"
    #: ``"clip"``, ``"soft_clip"`` or ``"siglip"``
    contrastive: str = "clip"
    temperature: float = 0.05
    #: spots that a crop is told apart from in the contrastive loss: ``"section"`` (batches of one section each, so that
    #: nothing is won by telling sections apart) or ``"all"``
    negatives: str = "all"
    #: name of a reconstruction loss; ``"nb"`` is the likelihood of the counts
    reconstruction: str = "barlow_std_mse"
    #: scale of both reconstruction losses
    reconstruction_scale: float = 0.1
    weight_contrast: float = 1.0
    weight_gene: float = 1.0
    weight_image: float = 1.0
    #: whether to sample the code and add the KL term, weighted 1 / dim
    kl: bool = False
    #: layer the gene encoder sees and both decoders reconstruct
    layer: str = Keys.CONTEXT
    #: share of genes hidden from the gene encoder in training; None is 0, and what a masked autoencoder states
    mask_genes: float | None = None
    #: deviation of the noise added to the gene encoder's input, in units of each gene's own
    noise: float = 0.0
    #: weight of the loss on hidden genes alone
    weight_masked: float = 1.0
    #: whether the gene decoder is told each spot's organ by a learned vector added to the code; encoders never are, so
    #: that no embedding needs to know the organ. Spots of unknown organ have the zero vector
    organ_embedding: bool = False
    #: 0 draws every spot once per epoch; 1 gives every organ the same share of the draws, and every section the same
    #: share of its organ's; between, a compromise
    balance: float = 0.0
    #: weight of a discriminator that must not tell `domain` from image embeddings (gradient reversal); 0 is none
    weight_domain: float = 0.0
    #: ``"section"``, ``"patient"`` or ``"organ"``
    domain: str = "section"
    #: epochs without a better held-out `monitor` after which training stops, with the best weights; None trains on
    patience: int | None = None
    #: ``"pearson"`` or ``"recall@10"``
    monitor: str = "pearson"
    #: crops per forward pass where a batch does not fit into memory; same gradients up to rounding, adapted blocks run
    #: once more
    chunk_size: int | None = None
    #: whether to compile the trained part of the encoder with `torch.compile`
    compile: bool = False
    #: largest norm of the gradient
    clip_norm: float = 1.0
    #: Lightning's precision, e.g. ``"bf16-mixed"``; ``"auto"`` is ``settings.precision``, or bf16 on GPUs that have it
    precision: str = "auto"
    #: batches whose gradients are summed before a step
    accumulate: int = 1
    #: worker processes of the loader
    num_workers: int = 0

    def __post_init__(self) -> None:
        check_fields(self, "params")
        for name in ("epochs", "batch_size", "lr", "views", "patience", "chunk_size"):
            if getattr(self, name) is not None:
                check_positive(f"params.{name}", getattr(self, name))
        for name in ("temperature", "reconstruction_scale", "warmup_lr", "clip_norm", "accumulate"):
            check_positive(f"params.{name}", getattr(self, name))
        for name in ("mask_genes", "balance"):
            check_fraction(f"params.{name}", getattr(self, name) or 0.0)
        check_choice("params.domain", self.domain, ("section", "patient", "organ"))
        check_choice("params.monitor", self.monitor, ("pearson", "recall@10"))
        check_choice("params.augmentation", self.augmentation, sorted(AUGMENTATIONS))
        check_choice("params.cache", self.cache, ("auto", "trunk", "none"))
        check_choice("params.contrastive", self.contrastive, sorted(CONTRASTIVE))
        check_choice("params.negatives", self.negatives, ("all", "section"))
        check_choice("params.reconstruction", self.reconstruction, sorted(RECONSTRUCTION | COUNT_RECONSTRUCTION))
        check_choice("params.layer", self.layer, (Keys.CONTEXT, Keys.LOGNORM))

    def filled(self, **values: Any) -> TrainParams:
        """Copy with the fields that are None taken from `values`."""
        return replace(self, **{k: v for k, v in values.items() if getattr(self, k) is None})


def train_params(given: TrainParams | Mapping[str, Any] | str | Path | None) -> TrainParams:
    """Parameters from themselves, from their fields, or from a YAML file; an open precision is that of the settings."""
    params = resolve_params(TrainParams, from_yaml(given), name="params")
    return replace(params, precision=settings.precision) if params.precision == "auto" else params


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


def choose(n_spots: int, n_blocks: int) -> dict[str, Choice]:
    """Hyper-parameters for a number of spots and of encoder blocks.

    Between 2,000 and 200,000 spots, rates move log-linearly from a small-data recipe (found on 551 spots of three real
    sections) to the paper's (learning rate 1e-4, weight decay 0.2, batch 384, 10 epochs, the last block).
    """
    small, batch = n_spots < SMALL, Choice(384, "the paper's batch")
    if n_spots < LARGE:
        # A power of two: enough steps per epoch, enough negatives per step.
        size = 2 ** round(math.log2(max(_between(n_spots, min(64, n_spots / 8), 384), 8)))
        reason = f"an eighth of {n_spots} spots, at most 64" if small else "between 64 and the paper's 384"
        batch = Choice(int(min(size, max(2, n_spots // 2))), reason)
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
        check_fields(self, "params")
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
