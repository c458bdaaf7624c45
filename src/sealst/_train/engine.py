"""Run the stages with Lightning."""

from __future__ import annotations

import logging
import math
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader

from sealst._core.device import has_bf16, processes
from sealst._core.seeds import mixed_seed
from sealst._data.dataset import PairDataset, as_is
from sealst._errors import DataError
from sealst._process.signals import exit_code
from sealst._train.callbacks import Checkpoints, EarlyStopping, MetricsLog, SegmentSchedule, TensorBoardLog
from sealst._train.module import AlignStage, Stage, WarmupStage
from sealst._train.params import TrainParams
from sealst._train.sampler import MAX_SEGMENT_STEPS, InOrder, SegmentSampler


@contextmanager
def quiet_lightning() -> Iterator[None]:
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
def interruptible(trainer: L.Trainer) -> Iterator[None]:
    """Let requests to stop reach the caller as what they are.

    Lightning turns Ctrl-C into an exit and leaves the signal ignored. SIGTERM it makes an exit with code 0, as if all
    were done, or, in the last step, nothing at all.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
        if trainer.received_sigterm:
            raise SystemExit(exit_code(signal.SIGTERM))
    except SIGTERMException:
        raise SystemExit(exit_code(signal.SIGTERM)) from None
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGINT, handler)


#: arguments of Lightning's Trainer that follow from `params`, from `device` and from how checkpoints are made
RESERVED = frozenset(
    {
        *("max_epochs", "accelerator", "precision", "gradient_clip_val", "accumulate_grad_batches"),
        *("check_val_every_n_epoch", "use_distributed_sampler", "enable_checkpointing", "enable_progress_bar"),
        *("enable_model_summary", "num_sanity_val_steps"),
    }
)


@dataclass(frozen=True)
class Run:
    """Where and how stages run, beside their parameters."""

    seed: int = 0
    #: folder of metrics.csv and checkpoints; None writes nothing
    folder: Path | None = None
    #: state of an earlier run to continue
    state: Mapping[str, Any] | None = None
    #: arguments of Lightning's Trainer
    trainer_kwargs: Mapping[str, Any] = field(default_factory=dict)
    show: bool | None = None
    #: longest stretch of steps between checkpoints, and least seconds between two of one stage
    max_steps: int = MAX_SEGMENT_STEPS
    seconds: float = 60.0


def _loader(data: PairDataset, sampler: Any, params: TrainParams, device: torch.device) -> DataLoader[Any]:
    return DataLoader(
        data,
        # The sampler gives whole batches, so that a fancy index fetches each at once.
        batch_size=None,
        sampler=sampler,
        collate_fn=as_is,  # type: ignore[arg-type]
        num_workers=params.num_workers,
        pin_memory=device.type == "cuda",
        persistent_workers=params.num_workers > 0,
        # Workers must not move the random state of the training.
        generator=torch.Generator(),
    )


def _plugins(given: Any) -> list[Any]:
    """The user's plugins; under SLURM, without what Lightning does at SIGUSR1.

    It would write a checkpoint of its own into the working directory and load it in the next training there, on top of
    ours.
    """
    plugins = list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
    chosen = any(isinstance(one, ClusterEnvironment) for one in plugins)
    # In Lightning's order.
    if not chosen and not TorchElasticEnvironment.detect() and SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))
    return plugins


def _trainer(
    run: Run, params: TrainParams, device: torch.device, *, stretches: int, callbacks: list[L.Callback], world: int
) -> L.Trainer:
    given = dict(run.trainer_kwargs)
    own = [device.index] if device.type == "cuda" and device.index is not None else 1
    strategy = given.pop("strategy", "auto")
    if world > 1 and strategy in ("auto", "ddp"):
        # The warm-up leaves out the encoder, and without the KL term nothing asks for the variance of the code.
        strategy = "ddp_find_unused_parameters_true"
    best = "bf16-mixed" if has_bf16(device) else "32-true"
    options: dict[str, Any] = {
        "accelerator": {"cuda": "gpu"}.get(device.type, device.type),
        "devices": given.pop("devices", own),
        "strategy": strategy,
        "plugins": _plugins(given.pop("plugins", None)),
        "max_epochs": stretches,
        "precision": best if params.precision == "auto" else params.precision,
        "gradient_clip_val": params.clip_norm,
        "accumulate_grad_batches": params.accumulate,
        # Whether a stretch ends an epoch is told by a callback.
        "check_val_every_n_epoch": 1,
        "callbacks": [*callbacks, *given.pop("callbacks", ())],
        # The sampler knows the processes itself.
        "use_distributed_sampler": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return L.Trainer(**({"logger": False, "log_every_n_steps": 1} | given | options))


def run_stages(
    model: Any,
    params: TrainParams,
    *,
    train: PairDataset,
    held_out: PairDataset | None,
    run: Run,
    warmup: PairDataset | None = None,
    weights: np.ndarray | None = None,
    sections: np.ndarray | None = None,
    baseline: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Warm up the gene autoencoder, then align; returns one row per epoch (or part of a long one).

    `warmup` is expression for the first stage (default that of `train`), `weights` the probability of each training
    spot to be drawn, `sections` the section of each where batches are to be of one, `baseline` held-out scores of the
    frozen encoder for the log.
    """
    device, given, batch = model.device, run.trainer_kwargs, int(params.batch_size or 1)
    world, rank = processes(given.get("devices", 1), given.get("num_nodes", 1), device.type)
    rows: list[dict[str, Any]] = []
    if run.state is not None:
        rows += run.state["rows"]
        model.load_trained(run.state["model"])

    def fit(
        make: Callable[..., Stage], data: PairDataset, epochs: int, lr: float, *,
        weights: np.ndarray | None = None, sections: np.ndarray | None = None, held_out: PairDataset | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        """Run one stage from where it stands."""
        # Lightning leaves a model that it has trained on the CPU.
        model.to(device)
        # Spots per step over all processes, the same number in each.
        size = min(batch, len(data))
        if size < world:
            raise DataError(f"`params.batch_size` is {size}, fewer than the {world} processes that share it.")
        sampler = SegmentSampler(
            len(data), batch_size=size // world * world, views=data.views, seed=mixed_seed(run.seed, make.__name__),
            weights=weights, sections=sections, max_steps=run.max_steps, rank=rank, world=world,
        )  # fmt: skip
        total = epochs * sampler.segments_per_epoch
        steps = max(1, total * math.ceil(sampler.steps / params.accumulate))
        stage = make(model, params, lr, steps, run.seed, **options)
        state = run.state if run.state is not None and run.state["stage"] == stage.name else None
        best = EarlyStopping(params.monitor, params.patience if held_out is not None else None)
        if state is not None:
            sampler.first, stage.done = state["segment"], state["step"]
            best.load_state_dict(state["keeper"])
        stage.first_batch = sampler.first * sampler.steps
        if sampler.first < total:
            path = None if run.folder is None else run.folder / "metrics.csv"
            callbacks: list[L.Callback] = [
                SegmentSchedule(sampler),
                best,
                MetricsLog(rows, path, sampler=sampler, total=total, baseline=baseline or {}, show=run.show),
                Checkpoints(
                    run.folder, state, sampler=sampler, best=best, rows=rows, total=total, seconds=run.seconds,
                    # Cached tokens are rounded, so the way of reading belongs to the state.
                    cache="trunk" if train.caches_tokens else "none",
                ),
            ]  # fmt: skip
            # Event files too, where TensorBoard is installed and the user brings no logger.
            if path is not None and rank == 0 and "logger" not in given and find_spec("tensorboard"):
                callbacks.insert(-1, TensorBoardLog(path.with_name("tensorboard"), rows))
            trainer = _trainer(run, params, device, stretches=total - sampler.first, callbacks=callbacks, world=world)
            validation = None
            if held_out is not None:
                # Of several batches, all but the last divide among the processes.
                shares = InOrder(len(held_out), min(batch // world * world, len(held_out)), rank=rank, world=world)
                validation = _loader(held_out, shares, params, device)
            try:
                with interruptible(trainer):
                    trainer.fit(stage, _loader(data, sampler, params, device), validation)
            except RuntimeError as error:
                # An error inside a living worker names "DataLoader worker process" and brings a traceback of its own.
                if "DataLoader worker (pid" not in str(error):
                    raise
                mend = "Run the same call with `resume=True`" if run.folder is not None else "Run again"
                raise DataError(
                    f"A worker process of the loader died ({str(error).partition(chr(10))[0]}); often memory ran out. "
                    f"{mend}, with fewer `params.num_workers`."
                ) from error
        best.restore(model)

    with quiet_lightning():
        model.train()
        if params.warmup_epochs and (run.state is None or run.state["stage"] == WarmupStage.name):
            alone = warmup or PairDataset(None, train.expression, measured=train.measured, extra=train.extra)
            fit(WarmupStage, alone, params.warmup_epochs, params.warmup_lr)
        domains = {"n_domains": int(train.extra["domain"].max()) + 1} if "domain" in train.extra else {}
        fit(
            AlignStage, train, int(params.epochs or 0), float(params.lr or 0), weights=weights, sections=sections,
            held_out=held_out, **domains,
        )  # fmt: skip
    model.to(device).eval()
    return pd.DataFrame(rows)
