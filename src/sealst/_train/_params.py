"""How to train: parameters, each None chosen from the amount of data by `_recipe`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sealst._core.augment import AUGMENTATIONS
from sealst._core.losses import CONTRASTIVE, RECONSTRUCTION
from sealst._keys import Keys
from sealst._validate import check_choice, check_positive


@dataclass(frozen=True)
class TrainParams:
    """Training of the SEAL model; a field left at None is chosen from the number of spots (see the recipe page)."""

    #: passes over the spots in the alignment stage
    epochs: int | None = None
    #: passes of the gene autoencoder alone, before alignment
    warmup_epochs: int | None = None
    #: spots per step; also the pool of the contrastive loss
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
    #: (all of these and erasing)
    augmentation: str = "soft"
    #: ``"trunk"`` caches the frozen blocks' output below ``settings.cache_dir``, where later runs find it (see
    #: `sealst.tl.clear_cache`); ``"none"`` runs the whole encoder each step; ``"auto"`` chooses by disk, epochs and
    #: the number of adapted blocks
    cache: str = "auto"
    #: ``"clip"``, ``"soft_clip"`` or ``"siglip"``
    contrastive: str = "clip"
    temperature: float = 0.05
    #: name of a reconstruction loss
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
    #: largest norm of the gradient
    clip_norm: float = 1.0
    #: Lightning's precision, e.g. ``"bf16-mixed"``; ``"auto"`` takes bf16 on GPUs that have it
    precision: str = "auto"
    #: batches whose gradients are summed before a step
    accumulate: int = 1
    #: worker processes of the loader
    num_workers: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr", "views"):
            if getattr(self, name) is not None:
                check_positive(f"params.{name}", getattr(self, name))
        for name in ("temperature", "reconstruction_scale", "warmup_lr", "clip_norm", "accumulate"):
            check_positive(f"params.{name}", getattr(self, name))
        check_choice("params.augmentation", self.augmentation, sorted(AUGMENTATIONS))
        check_choice("params.cache", self.cache, ("auto", "trunk", "none"))
        check_choice("params.contrastive", self.contrastive, sorted(CONTRASTIVE))
        check_choice("params.reconstruction", self.reconstruction, sorted(RECONSTRUCTION))
        check_choice("params.layer", self.layer, (Keys.CONTEXT, Keys.LOGNORM))

    def filled(self, **values: Any) -> TrainParams:
        """Copy with the fields that are None taken from `values`."""
        return replace(self, **{k: v for k, v in values.items() if getattr(self, k) is None})
