"""Fit one network of a slide model with Lightning."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler

from sealst._core.scores.slides import cox_loss
from sealst._core.seeds import mixed_seed, seeded
from sealst._data.bags.memory import BagDataset, BagStore, Sample
from sealst._data.dataset import as_is
from sealst._errors import DataError
from sealst._train.callbacks import EarlyStopping
from sealst._train.engine import interruptible, quiet_lightning
from sealst._train.params import SlideParams

CLASSIFICATION, REGRESSION, SURVIVAL = "classification", "regression", "survival"
TASKS = (CLASSIFICATION, REGRESSION, SURVIVAL)
_BATCH = {CLASSIFICATION: 8, REGRESSION: 8, SURVIVAL: 16}

#: outputs (n, n_out) and labels to a scalar
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Job:
    """Training side of one fold."""

    task: str
    store: BagStore
    #: rows of the store to learn from, and those that decide when to stop (possibly none)
    learn: np.ndarray
    watch: np.ndarray
    #: of every row of the store: class number, number, or (time, event)
    labels: np.ndarray
    n_classes: int
    seed: int

    @property
    def rows(self) -> np.ndarray:
        """All training rows."""
        return np.concatenate([self.learn, self.watch])


def _loss_of(job: Job, params: SlideParams) -> Loss:
    if job.task == REGRESSION:
        return lambda out, label: F.mse_loss(out[:, 0], label.to(out.dtype))
    if job.task == SURVIVAL:
        return lambda out, label: cox_loss(out[:, 0], label[:, 0], label[:, 1] > 0)
    counts = np.bincount(job.labels[job.learn].astype(int), minlength=job.n_classes)
    weights = len(job.learn) / (job.n_classes * counts) if params.balance else np.ones(job.n_classes)
    shares = torch.as_tensor(weights, dtype=torch.float32)

    def loss(out: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        each = F.cross_entropy(out, label.long(), reduction="none")
        # Divided by slides, not by weights: one slide of a rare class alone in a step keeps its weight.
        return (each * shares.to(out.device)[label.long()]).mean()

    return loss


class SlideStage(L.LightningModule):
    """A step pools some slides, one after the other, and compares them with their labels.

    Parameters
    ----------
    model
        Network whose forward takes the tiles of one slide and returns its streams and attention.
    loss
        Loss of outputs and labels.
    params
        How to fit.
    arrange
        Puts the tiles of a slide into the order that the network wants: (xy, n) to row numbers.
    classes
        Whether labels are classes, which some networks want to see while they train.
    """

    def __init__(
        self, model: nn.Module, loss: Loss, params: SlideParams, *, arrange: Callable[..., np.ndarray], classes: bool
    ) -> None:
        super().__init__()
        self.model, self.loss, self.params = model, loss, params
        self.arrange, self.classes = arrange, classes
        self._held: list[tuple[torch.Tensor, torch.Tensor]] = []

    def _tiles(self, sample: Sample) -> torch.Tensor:
        order = self.arrange(sample.xy, len(sample.features))
        return torch.as_tensor(sample.features[order], dtype=torch.float32, device=self.device)

    def _labels(self, batch: list[Sample]) -> torch.Tensor:
        return torch.as_tensor(np.array([s.label for s in batch]), dtype=torch.float32, device=self.device)

    def training_step(self, batch: list[Sample], batch_idx: int) -> torch.Tensor:
        pooled = [self.model(self._tiles(s), int(s.label) if self.classes else None) for s in batch]
        streams = torch.stack([p.streams for p in pooled], dim=1)
        labels = self._labels(batch)
        total = torch.stack([self.loss(stream, labels) for stream in streams]).mean()
        extra = [p.extra for p in pooled if p.extra is not None]
        return total + torch.stack(extra).mean() if extra else total

    def validation_step(self, batch: list[Sample], batch_idx: int) -> None:
        out = torch.stack([self.model(self._tiles(s)).streams.mean(dim=0) for s in batch])
        self._held.append((out, self._labels(batch)))

    def on_validation_epoch_end(self) -> None:
        out, labels = (torch.cat(part) for part in zip(*self._held, strict=True))
        self._held.clear()
        self.log("val_score", -self.loss(out, labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        weights = [p for p in self.model.parameters() if p.requires_grad]
        return torch.optim.AdamW(weights, lr=self.params.lr, weight_decay=self.params.weight_decay)


class _Log(L.Callback):
    """New draws of tiles every epoch, and a stop where the loss is no number."""

    def __init__(self, data: BagDataset) -> None:
        self.data, self.epochs = data, 0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.data.epoch = trainer.current_epoch
        self.epochs = trainer.current_epoch + 1

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not math.isfinite(float(outputs["loss"])):
            raise DataError(
                f"The loss became {float(outputs['loss'])} in epoch {self.epochs}. Lower `params.lr`, or look for "
                "extreme values among embeddings and labels."
            )


def fit_net(net: Any, job: Job, params: SlideParams, *, arrange: Callable[..., np.ndarray]) -> int:
    """Fit a network in place; returns the number of epochs.

    Parameters
    ----------
    net
        Network with buffers ``centre``, ``scale``, ``out_centre`` and ``out_scale``, on its device; see `SlideNet`.
    job
        Training side.
    params
        How to fit.
    arrange
        See `SlideStage`.
    """
    steps = _n_steps(job, params)
    labels = _prepare(net, job)
    make = partial(BagDataset, job.store, seed=mixed_seed(job.seed, "tiles"))
    learn = make(job.learn, labels[job.learn], max_tiles=params.max_tiles)
    generator = torch.Generator().manual_seed(mixed_seed(job.seed, "order") % 2**63)
    collate: Any = as_is
    order = EvenSteps(len(learn), steps, generator)
    loader = DataLoader(learn, batch_sampler=order, collate_fn=collate, generator=generator)
    watched = None
    if len(job.watch) and params.patience is not None:
        watch = make(job.watch, labels[job.watch], max_tiles=None)
        watched = DataLoader(watch, batch_size=math.ceil(len(learn) / steps), collate_fn=collate)
    stage = SlideStage(net, _loss_of(job, params), params, arrange=arrange, classes=job.task == CLASSIFICATION)
    log, best = _Log(learn), EarlyStopping("score", params.patience)
    device = net.device
    with quiet_lightning(), seeded(mixed_seed(job.seed, "fit") % 2**32):
        trainer = L.Trainer(
            accelerator={"cuda": "gpu"}.get(device.type, device.type),
            devices=[device.index] if device.type == "cuda" and device.index is not None else 1,
            max_epochs=params.epochs,
            gradient_clip_val=params.clip_norm,
            callbacks=[log, best],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        with interruptible(trainer):
            trainer.fit(stage, loader, watched)
    net.to(device)
    if best.weights:
        net.load_state_dict(best.weights)
    net.eval()
    if job.task == SURVIVAL:
        # Log risks are known up to a constant: make their mean over training slides 0.
        risks = [net.predict(bag.features, bag.xy).value[0] for bag in (job.store[int(row)] for row in job.rows)]
        net.out_centre.fill_(-float(np.mean(risks)))
    return log.epochs


class EvenSteps(Sampler[list[int]]):
    """Rows in a new order every epoch, cut into steps whose sizes differ by one row at most.

    A last step of what is left over may have a single row, which would count as much as all rows of a full one.
    """

    def __init__(self, n: int, steps: int, generator: torch.Generator) -> None:
        self.n, self.steps, self.generator = n, steps, generator

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(self.n, generator=self.generator).numpy()
        return (part.tolist() for part in np.array_split(order, self.steps))

    def __len__(self) -> int:
        return self.steps


def _n_steps(job: Job, params: SlideParams) -> int:
    """Steps per epoch."""
    n, size = len(job.learn), params.batch_size or _BATCH[job.task]
    if job.task != SURVIVAL:
        return math.ceil(n / size)
    if min(n, size) < 2:
        raise DataError(
            f"Survival compares the slides of a step with each other, but a step would have {min(n, size)} of {n} "
            f"training slides. Set `params.batch_size` to 2 or more (found {params.batch_size!r}), or ask for fewer "
            "`folds`."
        )
    return min(math.ceil(n / size), n // 2)


def _prepare(net: Any, job: Job) -> np.ndarray:
    """Moments of the training side into the network; returns labels as the loss wants them."""
    mean, deviation = job.store.moments(job.rows)
    net.centre.copy_(torch.as_tensor(mean))
    net.scale.copy_(torch.as_tensor(deviation))
    if job.task != REGRESSION:
        return job.labels
    known = job.labels[job.rows].astype(float)
    scale = float(known.std()) or 1.0
    net.out_centre.fill_(float(known.mean()))
    net.out_scale.fill_(scale)
    return (job.labels - known.mean()) / scale
