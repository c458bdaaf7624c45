"""Lightning modules of the two stages: gene autoencoder alone, then alignment."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sealst._core.device import to_images, training_autocast
from sealst._core.losses.domain import reverse_gradient
from sealst._core.losses.masking import add_noise, mask_genes
from sealst._core.losses.registry import CONTRASTIVE, COUNT_RECONSTRUCTION, RECONSTRUCTION, kl_with_flows, mse
from sealst._core.row_dropout import numbered_rows, row_dropouts
from sealst._core.scores.metrics import gene_pearson, recall_at_k, retrieval_ranks
from sealst._core.scores.probes import ridge_probe
from sealst._core.seeds import mixed_seed
from sealst._data.augment import AUGMENTATIONS
from sealst._data.dataset import Draw, PairDataset
from sealst._logging import logger
from sealst._train.params import TrainParams

Batch = dict[str, torch.Tensor]

#: of more held-out spots, recall is that among so many: its work grows with their square
MAX_POOL = 20_000


class Stage(L.LightningModule, ABC):
    """Optimiser, schedule and logging that both stages share; `model` is a `SealNet`, of a layer beside this one."""

    #: its name in the log
    name: str

    def __init__(self, model: Any, params: TrainParams, lr: float, total_steps: int, seed: int = 0) -> None:
        super().__init__()
        self.model, self.params, self.lr, self.total_steps, self.seed = model, params, lr, total_steps, seed
        self.reconstruct = (RECONSTRUCTION | COUNT_RECONSTRUCTION)[params.reconstruction]
        #: dispersion of every gene, where the loss is a likelihood of counts
        self.log_theta = None
        if params.reconstruction in COUNT_RECONSTRUCTION:
            self.log_theta = nn.Parameter(torch.zeros(len(model.panel)))
        #: steps and batches of an earlier run that this one continues
        self.done = self.first_batch = 0
        #: seed of the present step
        self.step_seed = seed

    @abstractmethod
    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters of this stage, by name."""

    def own(self) -> dict[str, nn.Parameter]:
        """Parameters of the losses, which no model keeps."""
        return {name: p for name, p in self.named_parameters() if not name.startswith("model.")}

    def configure_optimizers(self) -> Any:
        """AdamW; biases, norms and flow vectors are not decayed; cosine schedule after a short linear rise."""
        rates, groups = self.model.rates(), defaultdict(list)
        for name, parameter in self.trainable().items():
            groups[rates.get(name, 1.0), parameter.ndim > 1].append(parameter)
        options = [
            {"params": params, "lr": self.lr * rate, "weight_decay": self.params.weight_decay if decayed else 0.0}
            for (rate, decayed), params in groups.items()
        ]
        # On a CPU, one pass over the parameters instead of a dozen.
        fused = self.model.device.type == "cpu" and "mixed" not in str(self.trainer.precision)
        optimiser = torch.optim.AdamW(options, lr=self.lr, fused=fused or None)
        warm = max(1, round(0.05 * self.total_steps))

        def factor(step: int) -> float:
            if step < warm:
                return (step + 1) / warm
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, self.total_steps - warm))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Draw the randomness of a step from its number, so that a run that goes on repeats the one that stopped."""
        number = self.first_batch + self.trainer.fit_loop.total_batch_idx
        self.step_seed = mixed_seed(self.seed, self.name, number, self.global_rank)
        torch.manual_seed(self.step_seed)

    def gene_terms(self, batch: Batch) -> tuple[Any, torch.Tensor, dict[str, torch.Tensor]]:
        """Code, standardised target and the gene side's loss terms."""
        params, target = self.params, self.model.standardise(batch["expression"])
        shown, hidden = target, None
        if params.noise:
            shown = add_noise(target, params.noise)
            if "mask" in batch:
                # Genes that are not measured stay at 0, by which some encoders know them.
                shown = shown.masked_fill(~batch["mask"], 0)
        if params.mask_genes:
            shown, hidden = mask_genes(shown, params.mask_genes)
        code = self.model.gene_encoder(shown, sample=params.kl)
        z = code.z
        if "organ" in batch:
            # -1 is an unknown organ.
            vectors = self.model.organ_embedding(batch["organ"].clamp(min=0))
            z = z + vectors * (batch["organ"] >= 0)[:, None]
        decoded = self.model.gene_encoder.decode(z)
        terms = {"gene": self.reconstruction(decoded, target, batch)}
        if hidden is not None:
            asked = hidden if "mask" not in batch else hidden & batch["mask"]
            terms["masked"] = params.reconstruction_scale * mse(decoded, target, asked)
        if params.kl:
            terms["kl"] = kl_with_flows(code.mu, code.logvar, code.log_det) / self.model.dim
        return code, target, terms

    def reconstruction(self, predicted: torch.Tensor, target: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Scaled loss of predicted expression, over the genes that each spot's section measures."""
        mask = batch.get("mask")
        if self.log_theta is None:
            return self.params.reconstruction_scale * self.reconstruct(predicted, target, mask)
        library, total = batch["library"].clamp(min=1), self.model.panel.target_sum
        counts = torch.expm1(batch["expression"]) * library[:, None] / total
        expected = predicted * self.model.panel_std + self.model.panel_mean
        return self.params.reconstruction_scale * self.reconstruct(
            expected, counts, mask, library=library, log_theta=self.log_theta, target_sum=total
        )

    def joined(self, batch: Batch) -> Batch:
        """The batch over all devices, with gradient where there is one; pictures stay where they are."""
        kept = {name: values for name, values in batch.items() if name not in ("crops", "tokens")}
        if self.trainer.world_size == 1:
            return kept
        out = {}
        for name, values in kept.items():
            # Not every backend sends truth values.
            sent = values.byte() if values.dtype == torch.bool else values
            gathered: Any = self.all_gather(sent, sync_grads=values.requires_grad)
            out[name] = gathered.flatten(0, 1).to(values.dtype)
        return out

    def report(self, terms: dict[str, torch.Tensor], n: int) -> torch.Tensor:
        """Log the terms and their weighted sum."""
        weights = {name: getattr(self.params, f"weight_{name}", 1.0) for name in terms}
        loss = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        for name, value in {"loss": loss, **terms}.items():
            self.log(f"train_{name}", value.detach(), on_step=False, on_epoch=True, batch_size=n)
        return loss


class WarmupStage(Stage):
    """Train the gene autoencoder alone."""

    name = "warmup"

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters of the gene autoencoder, and vectors of organs."""
        parts = ("gene_encoder.", "organ_embedding.")
        return {name: p for name, p in self.model.named_parameters() if name.startswith(parts)} | self.own()

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        """Reconstruction of expression from its code."""
        batch = self.joined(batch)
        return self.report(self.gene_terms(batch)[2], len(batch["expression"]))


class AlignStage(Stage):
    """Train adapter, gene autoencoder and image head together."""

    name = "align"

    def __init__(
        self, model: Any, params: TrainParams, lr: float, total_steps: int, seed: int = 0, n_domains: int = 0
    ) -> None:
        super().__init__(model, params, lr, total_steps, seed)
        self.contrast = CONTRASTIVE[params.contrastive]
        self.augment = AUGMENTATIONS[params.augmentation]
        self._dropouts = row_dropouts(model.encoder)
        self.discriminator = Discriminator(model.dim, n_domains) if params.weight_domain else None
        self._tail: Any = torch.compile(self._embed) if params.compile else self._embed
        self._trunk: Any = torch.compile(self._tokens) if params.compile else self._tokens
        self._held_out: list[dict[str, np.ndarray]] = []

    def trainable(self) -> dict[str, nn.Parameter]:
        """Everything that is not frozen."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad} | self.own()

    def embed(self, batch: Batch) -> torch.Tensor:
        """Image embeddings of a batch of cached tokens or of crops."""
        if "tokens" in batch:
            inputs = batch["tokens"]
        else:
            inputs = to_images(batch["crops"], batch["crops"].device)
            inputs = self.augment(inputs) if self.training else inputs
        size = self.params.chunk_size or len(inputs)
        if len(inputs) <= size or not torch.is_grad_enabled():
            return self._pass(inputs, 0)
        parts, start = [], 0
        for part in inputs.split(size):
            n = len(part)
            if _are_images(part) and self.model.n_trunk:
                # Frozen blocks need not be computed again.
                with torch.no_grad():
                    part = self._trunk(part)
            # Activations of one chunk at a time: they are thrown away, and computed again on the way back.
            parts.append(checkpoint(self._pass, part, start, use_reentrant=False))
            start += n
        return torch.cat(parts)

    def _pass(self, inputs: torch.Tensor, first: int) -> torch.Tensor:
        """Embeddings of a stretch of the batch, from its row `first` on."""
        with numbered_rows(self._dropouts, self.step_seed, first):
            return self._tail(inputs)

    def _embed(self, inputs: torch.Tensor) -> torch.Tensor:
        encoder = self.model.encoder
        if _are_images(inputs):
            return encoder(inputs)
        half = torch.is_autocast_enabled(inputs.device.type)
        return encoder.tail(inputs if half else inputs.float(), self.model.n_trunk)

    def _tokens(self, images: torch.Tensor) -> torch.Tensor:
        return self.model.encoder.trunk(images, self.model.n_trunk)

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        """Contrastive alignment plus reconstruction of expression from both sides."""
        # All devices see the joint batch from here on: losses with statistics over the batch, and the batch
        # normalisation of the gene encoder, are those of one device with all of it.
        batch = self.joined(batch | {"image": self.embed(batch)})
        image = batch["image"]
        code, target, terms = self.gene_terms(batch)
        terms["image"] = self.reconstruction(self.model.image_head(image), target, batch)
        terms["contrast"] = self.contrast(*self._compared(image, code.z), temperature=self.params.temperature)
        if self.discriminator is not None:
            guess = self.discriminator(reverse_gradient(image))
            terms["domain"] = nn.functional.cross_entropy(guess.float(), batch["domain"])
        return self.report(terms, len(target))

    def _compared(self, image: torch.Tensor, gene: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both sides in the space in which they are compared."""
        return self.model.image_projection(image), self.model.gene_projection(gene)

    def validation_step(self, batch: Batch, _: int) -> None:
        """Collect embeddings and predictions of held-out spots, of which each process computes its share."""
        image = self.embed(batch)
        target = self.model.standardise(batch["expression"])
        compared = self._compared(image, self.model.gene_encoder(target).z)
        predicted = self.model.image_head(image)
        parts = dict(zip(("image", "gene", "predicted", "target"), (*compared, predicted, target), strict=True))
        found = {name: part.float() for name, part in parts.items()}
        found = self.joined(found | {name: batch[name] for name in ("mask",) if name in batch})
        # One process scores: the spots need not lie in the memory of every one.
        if self.trainer.is_global_zero:
            self._held_out.append({name: part.cpu().numpy() for name, part in found.items()})

    def on_validation_epoch_end(self) -> None:
        """Held-out gene Pearson of the direct prediction, and recall of the own spot among all, or among `MAX_POOL`."""
        scores: Any = self._scores() if self.trainer.is_global_zero else None
        # All processes stop at the same epoch, and keep the weights of the same one.
        self.log_dict(self.trainer.strategy.broadcast(scores))

    def _scores(self) -> dict[str, float]:
        # The last batch may repeat a spot (see the sampler).
        loader: Any = self.trainer.val_dataloaders
        n = len(loader.dataset)
        parts = {name: np.concatenate([part[name] for part in self._held_out])[:n] for name in self._held_out[0]}
        self._held_out.clear()
        image, gene, predicted = (parts[name] for name in ("image", "gene", "predicted"))
        if not all(np.isfinite(part).all() for part in (image, gene, predicted)):
            # Weights that are broken stop the run at the end of the epoch (see the recorder). Else it was the precision
            # that overflowed: these scores are none, and the former ones must not stand for them.
            return {"val_pearson": float("nan"), "val_recall@10": float("nan")}
        pearson = gene_pearson(predicted, parts["target"], mask=parts.get("mask"))
        # The same spots after every epoch, so that scores can be compared.
        rng = np.random.default_rng(mixed_seed(self.seed, "pool"))
        pool = np.sort(rng.choice(len(image), MAX_POOL, replace=False)) if len(image) > MAX_POOL else slice(None)
        image, gene = image[pool], gene[pool]
        ranks = retrieval_ranks(image, gene, np.arange(len(image)))
        return {
            "val_pearson": float(np.nanmean(pearson)) if np.isfinite(pearson).any() else float("nan"),
            "val_recall@10": float(recall_at_k(ranks, (10,), len(gene))["R@10"]),
        }


def _are_images(inputs: torch.Tensor) -> bool:
    """Images (b, 3, px, px), or tokens (b, t, w)."""
    return inputs.ndim == 4


class Discriminator(nn.Sequential):
    """Guesses where an embedding comes from (Ganin & Lempitsky 2015)."""

    def __init__(self, dim: int, n_domains: int) -> None:
        super().__init__(nn.LayerNorm(dim), nn.Linear(dim, 256), nn.ReLU(), nn.Linear(256, n_domains))


#: spots that the frozen encoder's probe is fitted on, at most
_PROBE_SPOTS = 5000
_BATCH = 64


def frozen_baseline(
    model: Any, train: PairDataset, held_out: PairDataset, *, groups: np.ndarray, seed: int, precision: str = "auto"
) -> dict[str, float]:
    """Held-out gene Pearson of a ridge probe on the frozen encoder: the line to beat, by metric.

    `precision` is that of the training, as Lightning calls it.
    """
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(len(train), min(len(train), _PROBE_SPOTS), replace=False))
    known = np.ones(train.expression.shape[1], bool)
    for data in (train, held_out):
        if data.measured is not None:
            known &= data.measured.table.all(0)
    if not known.any():
        return {}
    with model.frozen_encoder():
        x, z = (
            _embedded(model, data, r, precision) for data, r in ((train, rows), (held_out, np.arange(len(held_out))))
        )
    probe = ridge_probe(x, train.expression[rows][:, known], z, groups=groups[rows])
    found = float(np.nanmean(gene_pearson(np.asarray(probe.predictions), held_out.expression[:, known])))
    logger.info("frozen encoder with a ridge probe: held-out gene Pearson %.4f, the line to beat", found)
    return {"pearson": found}


def _embedded(model: Any, data: PairDataset, rows: np.ndarray, precision: str) -> np.ndarray:
    """Embeddings of some spots' first view, by the encoder as it is."""
    model.eval()
    out = []
    with torch.inference_mode(), training_autocast(model.device, precision):
        for start in range(0, len(rows), _BATCH):
            part = rows[start : start + _BATCH]
            batch = data[Draw(part, np.zeros(len(part), dtype=int))]
            if "tokens" in batch:
                z = model.encoder.tail(batch["tokens"].to(model.device).float(), model.n_trunk)
            else:
                z = model.encoder(to_images(batch["crops"], model.device))
            out.append(z.float().cpu().numpy())
    return np.concatenate(out)
