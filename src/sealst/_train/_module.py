"""Lightning modules of the two stages: gene autoencoder alone, then alignment."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import lightning as L
import numpy as np
import torch
from torch import nn

from sealst._core.augment import AUGMENTATIONS
from sealst._core.losses import CONTRASTIVE, RECONSTRUCTION, kl_with_flows
from sealst._core.metrics import gene_pearson, recall_at_k, retrieval_ranks
from sealst._train._params import TrainParams

Batch = dict[str, torch.Tensor]


class Alignable(Protocol):
    """What training needs of a model."""

    encoder: Any
    gene_vae: Any
    image_head: Any
    dim: int
    n_trunk: int

    def standardise(self, x: torch.Tensor) -> torch.Tensor:
        """log1p-CP10k → z-scores."""
        ...

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """All parameters."""
        ...

    def rates(self) -> Mapping[str, float]:
        """Learning rates of parameters relative to that of the run, where they are not 1."""
        ...


def _cosine(warm: int, total: int) -> Callable[[int], float]:
    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, total - warm))))

    return factor


class _Stage(L.LightningModule, ABC):
    """Optimiser, schedule and logging that both stages share."""

    def __init__(self, model: Alignable, params: TrainParams, lr: float, total_steps: int) -> None:
        super().__init__()
        self.model, self.params, self.lr, self.total_steps = model, params, lr, total_steps
        self.reconstruct = RECONSTRUCTION[params.reconstruction]

    @abstractmethod
    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters of this stage, under the model's names."""

    def configure_optimizers(self) -> Any:
        """AdamW; biases, norms and flow vectors are not decayed; cosine schedule after a short linear rise."""
        rates, groups = self.model.rates(), defaultdict(list)
        for name, parameter in self.trainable().items():
            groups[rates.get(name, 1.0), parameter.ndim > 1].append(parameter)
        options = [
            {"params": params, "lr": self.lr * rate, "weight_decay": self.params.weight_decay if decayed else 0.0}
            for (rate, decayed), params in groups.items()
        ]
        optimiser = torch.optim.AdamW(options, lr=self.lr)
        warm = max(1, round(0.05 * self.total_steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _cosine(warm, self.total_steps))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def gene_terms(self, batch: Batch) -> tuple[Any, torch.Tensor, dict[str, torch.Tensor]]:
        """Code, standardised target and the gene side's loss terms."""
        target = self.model.standardise(batch["expression"])
        code = self.model.gene_vae(target, sample=self.params.kl)
        terms = {"gene": self.reconstruction(self.model.gene_vae.decode(code.z), target, batch)}
        if self.params.kl:
            terms["kl"] = kl_with_flows(code.mu, code.logvar, code.log_det) / self.model.dim
        return code, target, terms

    def reconstruction(self, predicted: torch.Tensor, target: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Scaled loss of predicted expression, over the genes that each spot's section measures."""
        return self.params.reconstruction_scale * self.reconstruct(predicted, target, batch.get("mask"))

    def report(self, terms: dict[str, torch.Tensor], n: int) -> torch.Tensor:
        """Log the terms and their weighted sum."""
        weights = {
            "contrast": self.params.weight_contrast,
            "gene": self.params.weight_gene,
            "image": self.params.weight_image,
        }
        loss = torch.stack([weights.get(name, 1.0) * value for name, value in terms.items()]).sum()
        for name, value in {"loss": loss, **terms}.items():
            self.log(f"train_{name}", value.detach(), on_step=False, on_epoch=True, batch_size=n)
        return loss


class WarmupStage(_Stage):
    """Train the gene autoencoder alone."""

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters of the gene autoencoder."""
        return {f"gene_vae.{name}": p for name, p in self.model.gene_vae.named_parameters()}

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        """Reconstruction of expression from its code."""
        return self.report(self.gene_terms(batch)[2], len(batch["expression"]))


class AlignStage(_Stage):
    """Train adapter, gene autoencoder and image head together."""

    def __init__(self, model: Alignable, params: TrainParams, lr: float, total_steps: int) -> None:
        super().__init__(model, params, lr, total_steps)
        self.contrast = CONTRASTIVE[params.contrastive]
        self.augment = AUGMENTATIONS[params.augmentation]
        self._held_out: list[tuple[np.ndarray, ...]] = []

    def trainable(self) -> dict[str, nn.Parameter]:
        """Everything that is not frozen."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def embed(self, batch: Batch) -> torch.Tensor:
        """Image embeddings of a batch of cached tokens or of crops."""
        encoder, n_trunk = self.model.encoder, self.model.n_trunk
        if "tokens" in batch:
            tokens = batch["tokens"]
            return encoder.tail(
                tokens.float() if not torch.is_autocast_enabled(tokens.device.type) else tokens, n_trunk
            )
        images = batch["crops"].permute(0, 3, 1, 2).float() / 255
        return encoder(self.augment(images) if self.training else images)

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        """Contrastive alignment plus reconstruction of expression from both sides."""
        image = self.embed(batch)
        code, target, terms = self.gene_terms(batch)
        terms["image"] = self.reconstruction(self.model.image_head(image), target, batch)
        both = self.joint(image, code.z)
        terms["contrast"] = self.contrast(*both, temperature=self.params.temperature)
        return self.report(terms, len(target))

    def joint(self, image: torch.Tensor, gene: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of the batch over all devices, with gradient."""
        if self.trainer.world_size == 1:
            return image, gene
        gathered: Any = self.all_gather(torch.stack([image.float(), gene.float()]), sync_grads=True)
        joined = gathered.transpose(0, 1).flatten(1, 2)
        return joined[0], joined[1]

    def validation_step(self, batch: Batch, _: int) -> None:
        """Collect embeddings and predictions of held-out spots."""
        image = self.embed(batch)
        target = self.model.standardise(batch["expression"])
        gene = self.model.gene_vae(target).z
        predicted = self.model.image_head(image)
        parts = [part.float().cpu().numpy() for part in (image, gene, predicted, target)]
        mask = batch.get("mask")
        self._held_out.append((*parts, np.ones(target.shape, bool) if mask is None else mask.cpu().numpy()))

    def on_validation_epoch_end(self) -> None:
        """Held-out gene Pearson of the direct prediction, and recall of the own spot among all."""
        image, gene, predicted, target, mask = (np.concatenate(p) for p in zip(*self._held_out, strict=True))
        self._held_out.clear()
        if not all(np.isfinite(part).all() for part in (image, gene, predicted)):
            # Diverged: the recorder stops the run with a message about the loss.
            return
        pearson = gene_pearson(predicted, target, mask=mask)
        ranks = retrieval_ranks(image, gene, np.arange(len(image)))
        self.log("val_pearson", float(np.nanmean(pearson)) if np.isfinite(pearson).any() else float("nan"))
        self.log("val_recall@10", float(recall_at_k(ranks, (10,), len(gene))["R@10"]))
