"""What competes in an evaluation: a trained model, a frozen encoder, or models trained anew in every fold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sealst._errors import DataError
from sealst._logging import logger
from sealst._train.params import train_params
from sealst._validate import check_choice, listed
from sealst.models import CropSpec, Encoder, SealModel, build_encoder
from sealst.pp import Split
from sealst.tl._embed.trunk_memory import TrunkMemory
from sealst.tl._evaluate.folds import check_held_out
from sealst.tl._evaluate.material import Material, Sections
from sealst.tl._evaluate.methods import BLEEP, ST_NET
from sealst.tl._evaluate.views import SEAL, EncoderFeatures, Extractor, ModelFeatures
from sealst.tl._finetune.finetune import finetune
from sealst.tl._finetune.pairs import warmup_patients

#: further losses of a recipe, which no baseline has
_NOTHING_ELSE = {"weight_masked": 0.0, "mask_genes": 0.0, "kl": False, "weight_domain": 0.0}
#: what differs from SEAL when a baseline is trained, by name: parameters of training
BASELINES: dict[str, dict[str, Any]] = {
    # Regression of standardised expression from the image alone (He et al. 2020), with the same encoder and adapter.
    ST_NET: {"weight_contrast": 0.0, "weight_gene": 0.0, "reconstruction": "mse", "reconstruction_scale": 1.0}
    # Where it stops early: by what it trains.
    | {"monitor": "pearson"}
    | _NOTHING_ELSE,
    # Contrastive learning alone, targets softened by similarities within each side (Xie et al. 2023).
    BLEEP: {"weight_gene": 0.0, "weight_image": 0.0, "contrastive": "soft_clip", "monitor": "recall@10"}
    | _NOTHING_ELSE,
}
#: arguments of `finetune` that the evaluation sets itself
_TAKEN = ("sections", "seed", "validation", "run_dir", "resume", "allow_shared_patients", "progress", "table_key")


@dataclass(frozen=True)
class Contenders:
    """Models of an evaluation, and how crops become features."""

    label: str
    crop: CropSpec
    #: the model that was given
    model: SealModel | None = None
    #: the encoder that was given
    encoder: EncoderFeatures | None = None
    #: trains the models of a fold
    train: Callable[[Split, int], dict[str, SealModel]] | None = None
    #: patients whose expression the training of every fold warms up on; None where tables do not name them
    warmed_up_on: frozenset[str] | None = frozenset()
    #: with early stopping, divides the training side of a fold into what is learned from and what it stops by
    stopping: Callable[[Split], Split] | None = None

    @property
    def trains(self) -> bool:
        """Whether every fold trains its own models."""
        return self.train is not None

    def trained(self, fold: Split, seed: int) -> dict[str, SealModel]:
        """Models of one fold."""
        if self.train is None:
            raise RuntimeError("nothing to train")
        return self.train(fold, seed)

    def features(self, models: Mapping[str, SealModel], memory: TrunkMemory | None) -> Extractor:
        """How crops become features."""
        if models:
            return ModelFeatures(models, memory)
        if self.encoder is None:
            raise RuntimeError("neither a model nor an encoder")
        return self.encoder


def contenders_of(
    model: Any,
    material: Material,
    *,
    baselines: Sequence[str],
    device: torch.device,
    table_key: str,
    show: bool | None,
) -> Contenders:
    """Tell by its type what is evaluated."""
    for name in baselines:
        check_choice("baselines", name, sorted(BASELINES))
    if isinstance(model, Mapping):
        return _trained_in_folds(model, material, baselines, table_key=table_key, show=show)
    if baselines:
        raise DataError(
            f"Baselines ({listed(baselines)}) are trained beside SEAL in every fold: pass the arguments of "
            "`sl.tl.finetune` as a mapping instead of a model."
        )
    if isinstance(model, SealModel):
        return Contenders(f"SealModel {model.fingerprint}", model.crop, model=model)
    encoder = build_encoder(model) if isinstance(model, str) else model
    if not isinstance(encoder, Encoder):
        raise TypeError(
            "`model` must be a SealModel, an encoder or its name, or a mapping with arguments of `sl.tl.finetune`, "
            f"found {type(model).__name__}."
        )
    return Contenders(encoder.spec.key, material.crop(), encoder=EncoderFeatures(encoder, device))


def _trained_in_folds(
    recipe: Mapping[str, Any], material: Material, baselines: Sequence[str], *, table_key: str, show: bool | None
) -> Contenders:
    if not isinstance(material, Sections):
        raise DataError(
            "Models cannot be trained on the patches of HEST-bench: spots have no neighbours there. Read the samples "
            "of HEST-1k with `sl.io.read_hest`."
        )
    if "encoder" not in recipe:
        raise DataError(f"The mapping must name an 'encoder', as `sl.tl.finetune` does; found: {listed(recipe)}.")
    if taken := sorted(set(recipe) & set(_TAKEN)):
        raise DataError(f"The mapping must not hold {listed(taken)}, which the evaluation sets for every fold.")

    stopping = material.stopping if train_params(recipe.get("params")).patience is not None else None

    def train(fold: Split, seed: int) -> dict[str, SealModel]:
        common: dict[str, Any] = {"seed": seed, "table_key": table_key, "progress": show}
        if stopping is None:
            sections = material.whole(fold)
        else:
            inner = stopping(fold)
            sections = material.whole(inner)
            common["validation"] = material.whole(Split(inner.test, {}, inner.name))
            # Sections of the only patient left to train on.
            common["allow_shared_patients"] = inner.name.startswith("section-")
            logger.info("fold %s stops by section(s) %s", fold.name, listed(inner.test))
        models = {SEAL: finetune(sections, **recipe, **common)}
        for name in baselines:
            logger.info("baseline %s", name)
            given = _with_params(recipe, BASELINES[name]) | {"panel": models[SEAL].panel, "include": ()}
            models[name] = finetune(sections, **given, **common)
        check_held_out(fold, models)
        return models

    crop = material.crop() if recipe.get("crop_um") is None else CropSpec(recipe["crop_um"], material.crop().crop_px)
    known = warmup_patients(recipe.get("warmup"))
    warm = None if known is None else frozenset(known)
    return Contenders(
        f"{recipe['encoder']}, trained in every fold", crop, train=train, warmed_up_on=warm, stopping=stopping
    )


def _with_params(recipe: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    params = recipe.get("params") or {}
    if not isinstance(params, Mapping):
        raise DataError("With baselines, `params` of the mapping must be a mapping too, not a file or TrainParams.")
    return dict(recipe) | {"params": dict(params) | dict(changes)}
