"""What competes in an evaluation: a trained model, a frozen encoder, or models trained anew in every fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sealst._core.genes.panel import GenePanel
from sealst._errors import DataError, LeakError
from sealst._logging import logger
from sealst._train.params import train_params
from sealst._validate import check_choice, listed
from sealst.models import CropSpec, Encoder, SealModel, build_encoder
from sealst.pp import Split, select_genes
from sealst.tl._evaluate.cohorts import BenchCohort, Cohort
from sealst.tl._evaluate.folds import check_held_out, check_unseen, check_warmup
from sealst.tl._evaluate.methods import BLEEP, ST_NET
from sealst.tl._evaluate.views import SEAL, EncoderFeatures, Extractor, ModelFeatures, TrunkMemory
from sealst.tl._finetune.finetune import fields_of_view, finetune
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


class Candidate:
    """What an evaluation is about."""

    #: what it is called in the facts of an evaluation, and the encoder that it is or began as
    label: str
    base: str
    crop: CropSpec
    #: further fields of view that its readouts see, in µm
    wider: Sequence[float] = ()
    #: whether every fold trains its own models
    trains = False

    def models(self, fold: Split, seed: int, *, panel: GenePanel | None = None) -> dict[str, SealModel]:
        """Models of one fold by method; none where an encoder is evaluated as it is."""
        return {}

    def extractor(self, models: Mapping[str, SealModel], memory: TrunkMemory | None, views: int) -> Extractor:
        """How crops become features: by all models of a fold, with and without the adapter."""
        return ModelFeatures(models, memory, views=views)

    def check_leaks(self, cohort: Cohort, folds: Sequence[Split]) -> None:
        """Refuse folds that test on patients whose expression it knows."""

    def check_folds(self, folds: Sequence[Split]) -> None:
        """Refuse folds that it cannot be trained in."""

    def check_parts(self) -> None:
        """Refuse to learn from parts of the training side."""

    def stopped_by(self, folds: Sequence[Split]) -> dict[str, list[str]]:
        """Sections that the training of every fold stops by; empty without early stopping."""
        return {}


class GivenModel(Candidate):
    """A SEAL model that is trained already."""

    def __init__(self, model: SealModel) -> None:
        self.model, self.label, self.crop = model, f"SealModel {model.fingerprint}", model.crop
        self.base, self.wider = model.encoder.spec.key, model.fields[1:]

    def models(self, fold: Split, seed: int, *, panel: GenePanel | None = None) -> dict[str, SealModel]:
        """The model, in every fold."""
        return {SEAL: self.model}

    def check_parts(self) -> None:
        """Refuse: it has learned from all that it was trained on."""
        raise DataError(
            "`train_fractions` trains on parts of the sections, but the model is trained already. Pass the recipe that "
            "it came from, a mapping with the arguments of `sl.tl.finetune`, or the frozen encoder."
        )

    def check_leaks(self, cohort: Cohort, folds: Sequence[Split]) -> None:
        """Refuse patients that the model was trained on."""
        if isinstance(cohort, BenchCohort):
            raise LeakError(
                "The files of HEST-bench do not name patients, so nothing tells whether the model was trained on them. "
                "Pass the frozen encoder, or `allow_shared_patients=True` if you know that it was not."
            )
        tested = {name for fold in folds for name in fold.test}
        check_unseen(self.model, [part for part in cohort.parts() if part.section in tested])


class GivenEncoder(Candidate):
    """An encoder as it is, which has seen no expression."""

    def __init__(self, encoder: Encoder, crop: CropSpec, device: torch.device) -> None:
        self.label = self.base = encoder.spec.key
        self.crop, self.encoder, self.device = crop, encoder, device

    def extractor(self, models: Mapping[str, SealModel], memory: TrunkMemory | None, views: int) -> Extractor:
        """Features by the encoder."""
        return EncoderFeatures(self.encoder, self.device, views=views)


class TrainedInFolds(Candidate):
    """A recipe (arguments of `finetune`) by which every fold trains a model and baselines on its training sections."""

    trains = True

    def __init__(
        self, recipe: Mapping[str, Any], cohort: Cohort, baselines: Sequence[str], *, table_key: str, show: bool | None
    ) -> None:
        if isinstance(cohort, BenchCohort):
            raise DataError(
                "Models cannot be trained on the patches of HEST-bench: spots have no neighbours there. Read the "
                "samples of HEST-1k with `sl.io.read_hest`."
            )
        if "encoder" not in recipe:
            raise DataError(f"The mapping must name an 'encoder', as `sl.tl.finetune` does; found: {listed(recipe)}.")
        if taken := sorted(set(recipe) & set(_TAKEN)):
            raise DataError(f"The mapping must not hold {listed(taken)}, which the evaluation sets for every fold.")
        self.recipe, self.cohort, self.baselines = recipe, cohort, baselines
        self.table_key, self.show = table_key, show
        self.base = str(recipe["encoder"])
        self.label = f"{self.base}, trained in every fold"
        self.crop = cohort.crop()
        first, self.wider = fields_of_view(recipe.get("crop_um"), recipe.get("readout", "auto"))
        if first is not None:
            self.crop = CropSpec(first, self.crop.crop_px)
        self.stops_early = train_params(recipe.get("params")).patience is not None

    def models(self, fold: Split, seed: int, *, panel: GenePanel | None = None) -> dict[str, SealModel]:
        """Train the models of one fold.

        Where they learn from a part of its training side, `panel` is that of the models that learned from all of it.
        """
        common: dict[str, Any] = {"seed": seed, "table_key": self.table_key, "progress": self.show}
        learned_from = fold
        if self.stops_early:
            learned_from = self.cohort.stopping(fold)
            common["validation"] = self.cohort.sections(Split(learned_from.test, {}, learned_from.name))
            # Sections of the only patient left to train on.
            common["allow_shared_patients"] = learned_from.name.startswith("section-")
            logger.info("fold %s stops by section(s) %s", fold.name, listed(learned_from.test))
        sections = self.cohort.sections(learned_from)
        recipe = dict(self.recipe)
        if panel is not None:
            # What a part is scored on is what all of it is scored on; means and deviations are the part's own.
            if recipe.get("panel") is None:
                genes = select_genes(sections, criterion=panel.genes, layer=panel.layer, table_key=self.table_key)
                recipe |= {"panel": genes, "include": ()}
            recipe |= {"crossfit": None, "net": None}
        models = {SEAL: finetune(sections, **recipe, **common)}
        for name in self.baselines:
            logger.info("baseline %s", name)
            params = self.recipe.get("params") or {}
            if not isinstance(params, Mapping):
                raise DataError(
                    "With baselines, `params` of the mapping must be a mapping too, not a file or TrainParams."
                )
            given = {"params": dict(params) | BASELINES[name], "panel": models[SEAL].panel, "include": ()}
            given |= {"readout": "head", "crop_um": self.crop.crop_um}
            models[name] = finetune(sections, **recipe | given, **common)
        check_held_out(fold, models)
        return models

    def check_leaks(self, cohort: Cohort, folds: Sequence[Split]) -> None:
        """Refuse patients whose expression every fold warms up on."""
        check_warmup(cohort.parts(), folds, warmup_patients(self.recipe.get("warmup")))

    def check_folds(self, folds: Sequence[Split]) -> None:
        """Refuse folds that cut through sections."""
        for fold in folds:
            self.cohort.whole(fold)

    def stopped_by(self, folds: Sequence[Split]) -> dict[str, list[str]]:
        """Test sides of the folds within folds."""
        return {f.name: self.cohort.stopping(f).test_sections for f in folds} if self.stops_early else {}


def candidate_of(
    model: Any, cohort: Cohort, *, baselines: Sequence[str], device: torch.device, table_key: str, show: bool | None
) -> Candidate:
    """Tell by its type what is evaluated."""
    for name in baselines:
        check_choice("baselines", name, sorted(BASELINES))
    if isinstance(model, Mapping):
        return TrainedInFolds(model, cohort, baselines, table_key=table_key, show=show)
    if baselines:
        raise DataError(
            f"Baselines ({listed(baselines)}) are trained beside SEAL in every fold: pass the arguments of "
            "`sl.tl.finetune` as a mapping instead of a model."
        )
    if isinstance(model, SealModel):
        return GivenModel(model)
    encoder = build_encoder(model) if isinstance(model, str) else model
    if not isinstance(encoder, Encoder):
        raise TypeError(
            "`model` must be a SealModel, an encoder or its name, or a mapping with arguments of `sl.tl.finetune`, "
            f"found {type(model).__name__}."
        )
    return GivenEncoder(encoder, cohort.crop(), device)
