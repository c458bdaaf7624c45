"""How to train and to fit; what the user leaves open is chosen from the amount of data (``docs/guide/recipe.md``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from sealst._core.losses.registry import CONTRASTIVE, COUNT_RECONSTRUCTION, RECONSTRUCTION
from sealst._data.augment import AUGMENTATIONS
from sealst._given.schema import (
    Blocks,
    Count,
    NotNegative,
    Number,
    Positive,
    Share,
    Temperature,
    Width,
    Workers,
    check_fields,
    one_in,
    one_of,
)
from sealst._given.yaml import from_yaml
from sealst._keys import Keys
from sealst._settings import settings
from sealst._validate import resolve_params

#: one spot alone has nothing that it is told apart from
Several = Annotated[int, Field(ge=2)]
#: names that a field may have
Augmentation = Annotated[str, one_in(AUGMENTATIONS)]
Contrastive = Annotated[str, one_in(CONTRASTIVE)]
Reconstruction = Annotated[str, one_in(RECONSTRUCTION, COUNT_RECONSTRUCTION)]
_PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true", "32", "16", "bf16", "64")
Precision = Annotated[str, one_of("auto", *_PRECISIONS, "transformer-engine", "transformer-engine-float16")]


@dataclass(frozen=True)
class TrainParams:
    """Training of the SEAL model; a field left at None is chosen from the number of spots (see the recipe page)."""

    #: passes over the spots in the alignment stage
    epochs: Count | None = None
    #: passes of the gene autoencoder alone, before alignment
    warmup_epochs: Number | None = None
    #: spots per step, over all devices; also the pool of the contrastive loss
    batch_size: Several | None = None
    #: peak learning rate of the alignment stage (AdamW, cosine schedule)
    lr: Positive | None = None
    #: learning rate of the warm-up stage
    warmup_lr: Positive = 5e-4
    weight_decay: NotNegative | None = None
    #: augmented versions of each crop in the trunk cache, the crop itself included
    views: Blocks | None = None
    #: ``"none"``; ``"soft"`` (flips, rotations, mild colour jitter); ``"stain"`` (flips, rotations, haematoxylin and
    #: eosin varied separately, after Tellez et al. 2018, for sections of several laboratories or scanners); ``"hard"``
    #: (all of these, Gaussian blur and erasing)
    augmentation: Augmentation = "soft"
    #: ``"trunk"`` caches the frozen blocks' output below ``settings.cache_dir``, where later runs find it (see
    #: `sealst.tl.clear_cache`); ``"none"`` runs the whole encoder each step; ``"auto"`` chooses by disk, epochs and
    #: the number of adapted blocks
    cache: Annotated[str, one_of("auto", "trunk", "none")] = "auto"
    #: ``"clip"``, ``"soft_clip"`` or ``"siglip"``
    contrastive: Contrastive = "clip"
    temperature: Temperature = 0.05
    #: spots that a crop is told apart from in the contrastive loss: ``"section"`` (batches of one section each, so that
    #: nothing is won by telling sections apart; chosen where there are several patients) or ``"all"``
    negatives: Annotated[str, one_of("all", "section")] | None = None
    #: name of a reconstruction loss; ``"nb"`` is the likelihood of the counts
    reconstruction: Reconstruction = "barlow_std_mse"
    #: scale of both reconstruction losses
    reconstruction_scale: Positive = 0.1
    weight_contrast: NotNegative = 1.0
    weight_gene: NotNegative = 1.0
    weight_image: NotNegative = 1.0
    #: whether to sample the code and add the KL term, weighted 1 / dim
    kl: bool = False
    #: layer the gene encoder sees and both decoders reconstruct
    layer: Annotated[str, one_of(Keys.CONTEXT, Keys.LOGNORM)] = Keys.CONTEXT
    #: share of genes hidden from the gene encoder in training; None is 0, and what a masked autoencoder states
    mask_genes: Share | None = None
    #: deviation of the noise added to the gene encoder's input, in units of each gene's own
    noise: NotNegative = 0.0
    #: weight of the loss on hidden genes alone
    weight_masked: NotNegative = 1.0
    #: whether the gene decoder is told each spot's organ by a learned vector added to the code; encoders never are, so
    #: that no embedding needs to know the organ. Spots of unknown organ have the zero vector
    organ_embedding: bool = False
    #: 0 draws every spot once per epoch; 1 gives every organ the same share of the draws, and every section the same
    #: share of its organ's; between, a compromise
    balance: Share = 0.0
    #: weight of a discriminator that must not tell `domain` from image embeddings (gradient reversal); 0 is none
    weight_domain: NotNegative = 0.0
    #: ``"section"``, ``"patient"`` or ``"organ"``
    domain: Annotated[str, one_of("section", "patient", "organ")] = "section"
    #: epochs without a better held-out `monitor` after which training stops, with the best weights; None trains on
    patience: Count | None = None
    #: ``"pearson"`` or ``"recall@10"``
    monitor: Annotated[str, one_of("pearson", "recall@10")] = "pearson"
    #: crops per forward pass where a batch does not fit into memory; same gradients up to rounding, adapted blocks run
    #: once more
    chunk_size: Count | None = None
    #: whether to compile the trained part of the encoder with `torch.compile`
    compile: bool = False
    #: largest norm of the gradient
    clip_norm: Positive = 1.0
    #: Lightning's precision, e.g. ``"bf16-mixed"``; ``"auto"`` is ``settings.precision``, or bf16 on GPUs that have it
    precision: Precision = "auto"
    #: batches whose gradients are summed before a step
    accumulate: Count = 1
    #: worker processes of the loader
    num_workers: Workers = 0

    def __post_init__(self) -> None:
        check_fields(self, "params")

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


def choose(n_spots: int, n_blocks: int, n_patients: int = 1) -> dict[str, Choice]:
    """Hyper-parameters for a number of spots, of encoder blocks and of patients.

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
        "negatives": Choice("section", "of several patients, sections are easily told apart")
        if n_patients > 1
        else Choice("all", "of one patient"),
        "adapter_blocks": Choice(
            min(2 if n_spots < LARGE else 1, n_blocks), "the last blocks adapt, earlier ones are kept"
        ),
    }


@dataclass(frozen=True)
class SlideParams:
    """Fitting of a slide model, see `sealst.tl.fit_slide`."""

    #: passes over the training slides at most
    epochs: Count = 50
    #: learning rate (AdamW)
    lr: Positive = 3e-4
    weight_decay: NotNegative = 1e-3
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.25
    #: width that embeddings are brought to before pooling
    hidden: Width = 256
    #: width of the attention
    attention: Width = 128
    #: epochs without a lower loss of the inner validation patients after which fitting stops, with the best weights;
    #: None trains all epochs on all training slides
    patience: Count | None = 10
    #: slides per step; None is 8, and 16 for survival, where a step compares its slides with each other
    batch_size: Count | None = None
    #: tiles of a training slide that a step looks at, drawn anew every time; prediction always looks at all
    max_tiles: Count = 4096
    #: whether classes count the same in the loss, however rare they are; probabilities are then of balanced classes
    balance: bool = True
    #: largest norm of the gradient
    clip_norm: Positive = 1.0
    #: megabytes of embeddings kept in memory between epochs; what does not fit is read again
    cache_mb: Number = 4096

    def __post_init__(self) -> None:
        check_fields(self, "params")


def slide_params(given: SlideParams | Mapping[str, Any] | str | Path | None) -> SlideParams:
    """Parameters from themselves, from their fields, or from a YAML file with them."""
    return resolve_params(SlideParams, from_yaml(given), name="params")
