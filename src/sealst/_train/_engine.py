"""Run the stages with Lightning."""

from __future__ import annotations

import logging
import math
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader

from sealst._data.dataset import PairDataset, as_is
from sealst._errors import DataError
from sealst._files import write_text
from sealst._logging import logger, progress
from sealst._train._module import AlignStage, WarmupStage, _Stage
from sealst._train._params import TrainParams


class _Recorder(L.Callback):
    """One row per epoch, kept in memory and, atomically, in the run folder; one progress bar over all epochs."""

    def __init__(self, stage: str, rows: list[dict[str, Any]], path: Path | None, show: bool | None) -> None:
        self.stage, self.rows, self.path, self.show = stage, rows, path, show

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar = progress(None, desc=self.stage, total=trainer.max_epochs, show=self.show, unit="epoch")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
        if not np.isfinite(metrics["train_loss"]):
            raise DataError(
                f"The loss became {metrics['train_loss']} in epoch {trainer.current_epoch + 1} of stage "
                f"{self.stage!r}. Lower `params.lr`, or check the expression for extreme values."
            )
        self.rows.append(
            {"stage": self.stage, "epoch": trainer.current_epoch + 1, "step": trainer.global_step, **metrics}
        )
        self.bar.set_postfix({k.removeprefix("train_"): f"{v:.3f}" for k, v in metrics.items()})
        self.bar.update()
        if self.path is not None and trainer.is_global_zero:
            write_text(self.path, pd.DataFrame(self.rows).to_csv(index=False))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if hasattr(self, "bar"):
            self.bar.close()


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's banners; what the user must know goes through our logger."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\..*")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        try:
            for name in names:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C reach the caller: Lightning turns it into an exit and leaves the signal ignored."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGINT, handler)


def _loader(data: PairDataset, params: TrainParams, device: torch.device) -> DataLoader[Any]:
    size = min(int(params.batch_size or 1), len(data))
    return DataLoader(
        data,
        batch_size=size,
        shuffle=data.train,
        # A last batch of a few spots would make batch statistics and the contrastive loss meaningless.
        drop_last=data.train,
        collate_fn=as_is,  # type: ignore[arg-type]
        num_workers=params.num_workers,
        pin_memory=device.type == "cuda",
        persistent_workers=params.num_workers > 0,
        # Scoring held-out spots must not move the random state of the training.
        generator=None if data.train else torch.Generator(),
    )


def _precision(params: TrainParams, device: torch.device) -> str:
    if params.precision != "auto":
        return params.precision
    return "bf16-mixed" if device.type == "cuda" and torch.cuda.is_bf16_supported(False) else "32-true"


def _run(
    stage: Callable[..., _Stage],
    name: str,
    model: Any,
    params: TrainParams,
    *,
    lr: float,
    epochs: int,
    train: PairDataset,
    held_out: PairDataset | None,
    recorder: _Recorder,
    trainer_kwargs: Mapping[str, Any],
) -> None:
    device = model.device
    loader = _loader(train, params, device)
    steps = max(1, epochs * math.ceil(len(loader) / params.accumulate))
    options: dict[str, Any] = {
        "accelerator": {"cuda": "gpu"}.get(device.type, device.type),
        "devices": [device.index] if device.type == "cuda" and device.index is not None else 1,
        "max_epochs": epochs,
        "precision": _precision(params, device),
        "gradient_clip_val": params.clip_norm,
        "accumulate_grad_batches": params.accumulate,
        "callbacks": [recorder, *trainer_kwargs.get("callbacks", ())],
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    trainer = L.Trainer(**({k: v for k, v in trainer_kwargs.items() if k != "callbacks"} | options))
    module = stage(model, params, lr, steps)
    validation = None if held_out is None else _loader(held_out, params, device)
    with _interruptible():
        trainer.fit(module, loader, validation)


def run_stages(
    model: Any,
    params: TrainParams,
    *,
    train: PairDataset,
    held_out: PairDataset | None,
    metrics_path: Path | None,
    trainer_kwargs: Mapping[str, Any],
    show: bool | None,
) -> pd.DataFrame:
    """Warm up the gene autoencoder, then align; returns one row per epoch."""
    rows: list[dict[str, Any]] = []
    device = model.device

    def recorder(stage: str) -> _Recorder:
        return _Recorder(stage, rows, metrics_path, show)

    common: dict[str, Any] = {"trainer_kwargs": trainer_kwargs}
    with _quiet_lightning():
        model.train()
        if params.warmup_epochs:
            alone = PairDataset(None, train.expression, train=True, measured=train.measured)
            _run(
                WarmupStage, "warmup", model, params, lr=params.warmup_lr, epochs=params.warmup_epochs,
                train=alone, held_out=None, recorder=recorder("warmup"), **common,
            )  # fmt: skip
        _run(
            AlignStage, "align", model, params, lr=float(params.lr or 0), epochs=int(params.epochs or 0),
            train=train, held_out=held_out, recorder=recorder("align"), **common,
        )  # fmt: skip
    model.to(device).eval()
    logger.debug("trained for %d epochs", len(rows))
    return pd.DataFrame(rows)
