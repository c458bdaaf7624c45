"""What happens at the end of a stretch of training: a row in the log, early stopping, a checkpoint."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch

from sealst._errors import CheckpointError, DataError
from sealst._files import complete_file, write_text
from sealst._logging import logger, progress
from sealst._process.signals import deferred
from sealst._train.sampler import SegmentSampler
from sealst._validate import listed

FILE = "checkpoint.pt"


def write_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write beside the old one, then replace it: a crash or a full disk leaves the old one."""
    path = folder / FILE
    try:
        # A request to stop would come out of torch as an error of the disk.
        with deferred(), complete_file(path, sync=True) as partial, partial.open("wb") as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:
        kept = "The last one is still there" if path.is_file() else "There is none yet"
        raise CheckpointError(
            f"The checkpoint could not be written to {str(folder)!r} ({error}). {kept}; make room, then run the same "
            "call with `resume=True`."
        ) from error


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The state in a folder, or None where there is none."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"The checkpoint {str(path)!r} is damaged ({type(error).__name__}). Remove it to start again."
        ) from error
    return state


#: seconds after which a run without a progress bar says how far it is
_SILENCE_S = 30.0


class SegmentSchedule(L.Callback):
    """Keeps Lightning in step with the sampler: the same processes, and held-out scores at the end of an epoch alone.

    An epoch of Lightning's is a stretch of the sampler's; it counts from the one that a run goes on with.
    """

    def __init__(self, sampler: SegmentSampler) -> None:
        self.sampler = sampler

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        # Where both count otherwise, processes would share spots.
        expected, found = (self.sampler.world, self.sampler.rank), (trainer.world_size, trainer.global_rank)
        # All of them stop, as one alone would leave the others waiting for it.
        if trainer.strategy.reduce_boolean_decision(expected == found):
            return
        raise DataError(
            f"By its environment this is process {expected[1]} of {expected[0]}, but Lightning takes it for {found[1]} "
            f"of {found[0]}. Let `trainer_kwargs` (`devices`, `num_nodes`) say what the launcher (torchrun, srun) "
            "started, and unset what is left of another one (WORLD_SIZE, RANK, LOCAL_RANK)."
        )

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        number = self.sampler.first + trainer.current_epoch + 1
        last = number % self.sampler.segments_per_epoch == 0
        trainer.check_val_every_n_epoch = 1 if last else trainer.current_epoch + 2


class MetricsLog(L.Callback):
    """One row per stretch, in memory and, atomically, in the run folder; one progress bar over all of them."""

    def __init__(
        self, rows: list[dict[str, Any]], path: Path | None, *, sampler: SegmentSampler, total: int,
        baseline: Mapping[str, float], show: bool | None,
    ) -> None:  # fmt: skip
        self.rows, self.path, self.sampler, self.total = rows, path, sampler, total
        self.baseline, self.show = dict(baseline), show
        self.validated = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.validated = True

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.said = time.monotonic()
        self.bar = progress(
            None, desc=pl_module.name, total=self.total, initial=self.sampler.first, show=self.show, lines=False,
            unit="epoch" if self.sampler.segments_per_epoch == 1 else "part",
        )  # fmt: skip

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        # Lightning keeps held-out scores until the next ones.
        found, self.validated = self.validated, False
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if found or not k.startswith("val_")}
        done = self.sampler.segment + 1
        epoch = done / self.sampler.segments_per_epoch
        # The last steps may break weights unseen by any loss.
        state = pl_module.model.trained_state() | pl_module.own()
        bad = [name for name, values in state.items() if values.is_floating_point() and not values.isfinite().all()]
        broken = f"Weights became NaN or infinite ({listed(bad, 3)})" if bad else None
        if not math.isfinite(metrics["train_loss"]):
            broken = f"The loss became {metrics['train_loss']}"
        if broken is not None:
            raise DataError(
                f"{broken} in epoch {math.ceil(epoch)} of stage {pl_module.name!r}. Lower `params.lr`, or check the "
                "expression for extreme values. The last checkpoint is as it was."
            )
        step = pl_module.done + trainer.global_step
        row = {"stage": pl_module.name, "epoch": int(epoch) if epoch.is_integer() else epoch, "step": step, **metrics}
        if any(name.startswith("val_") for name in metrics):
            row |= {f"baseline_{name}": value for name, value in self.baseline.items()}
        self.rows.append(row)
        shown = {k.removeprefix("train_"): f"{v:.3f}" for k, v in metrics.items()}
        for name, value in self.baseline.items():
            if f"val_{name}" in shown:
                shown[f"val_{name}"] += f" (frozen {value:.3f})"
        self.bar.set_postfix(shown)
        self.bar.update()
        if self.bar.disable and time.monotonic() - self.said > _SILENCE_S:
            self.said = time.monotonic()
            logger.info("%s: %d of %d done, loss %.3f", pl_module.name, done, self.total, metrics["train_loss"])
        if self.path is not None and trainer.is_global_zero:
            write_text(self.path, pd.DataFrame(self.rows).to_csv(index=False))

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.bar.close()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        if hasattr(self, "bar"):
            self.bar.close()


class TensorBoardLog(L.Callback):
    """The same rows as event files for TensorBoard, one folder per stage; what a resumed run repeats is replaced."""

    def __init__(self, folder: Path, rows: list[dict[str, Any]]) -> None:
        self.folder, self.rows = folder, rows

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = self.folder / pl_module.name
        # TensorBoard reads files in the order of their names, which hold the second and then process and counter as
        # plain numbers ("10" before "9"): a run that goes on within the second it was stopped in would be read first.
        if any(folder.glob(f"events.out.tfevents.{int(time.time()):010d}.*")):
            time.sleep(1.0)
        self.writer = SummaryWriter(folder, purge_step=pl_module.done + 1 if pl_module.done else None)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        row = self.rows[-1]
        for name, value in row.items():
            if name not in ("stage", "step"):
                self.writer.add_scalar(name, value, row["step"])
        self.writer.flush()

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        self.writer.close()

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        if hasattr(self, "writer"):
            self.writer.close()


class EarlyStopping(L.Callback):
    """Best weights by a held-out metric, in memory, and whether it is time to stop.

    Lightning's own would stop at a score that is no number, and its checkpoints keep the frozen weights too.
    """

    def __init__(self, monitor: str, patience: int | None) -> None:
        self.monitor, self.patience = f"val_{monitor}", patience
        self.best, self.waited = -math.inf, 0
        self.weights: dict[str, torch.Tensor] = {}

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        value = trainer.callback_metrics.get(self.monitor)
        if self.patience is None or value is None:
            return
        if float(value) > self.best:
            self.best, self.waited = float(value), 0
            self.weights = {k: v.detach().cpu().clone() for k, v in pl_module.model.trained_state().items()}
            return
        self.waited += 1
        if self.waited >= self.patience:
            trainer.should_stop = True

    def restore(self, model: Any) -> None:
        """Put the best weights back."""
        if self.weights:
            model.load_trained(self.weights)
            logger.info("best %s: %.4f; its weights are kept", self.monitor, self.best)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "weights": self.weights}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.best, self.waited, self.weights = (state_dict[name] for name in ("best", "waited", "weights"))


class Checkpoints(L.Callback):
    """Everything that the next step depends on, after every stretch; at most one every `seconds` within a stage.

    Starts from `state`, where there is one.
    """

    def __init__(
        self, folder: Path | None, state: Mapping[str, Any] | None, *, sampler: SegmentSampler, best: EarlyStopping,
        rows: list[dict[str, Any]], total: int, seconds: float, cache: str,
    ) -> None:  # fmt: skip
        self.folder, self.state, self.sampler, self.best, self.rows = folder, state, sampler, best, rows
        self.total, self.seconds, self.cache, self._last = total, seconds, cache, -math.inf

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self.state is None:
            return
        trainer.optimizers[0].load_state_dict(self.state["optimizer"])
        trainer.lr_scheduler_configs[0].scheduler.load_state_dict(self.state["scheduler"])
        pl_module.load_state_dict(self.state["stage_state"], strict=False)
        # Checkpoints of earlier versions have none.
        if precision := self.state.get("precision"):
            trainer.precision_plugin.load_state_dict(precision)
        self.state = None

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        segment = self.sampler.segment + 1
        over = segment >= self.total or trainer.should_stop
        if self.folder is None or not trainer.is_global_zero:
            return
        if not over and time.monotonic() - self._last < self.seconds:
            return
        write_checkpoint(
            self.folder,
            {
                "stage": pl_module.name,
                "segment": self.total if over else segment,
                "cache": self.cache,
                "step": pl_module.done + trainer.global_step,
                "model": {k: v.detach().cpu() for k, v in pl_module.model.trained_state().items()},
                "stage_state": {k: v for k, v in pl_module.state_dict().items() if not k.startswith("model.")},
                "optimizer": trainer.optimizers[0].state_dict(),
                "scheduler": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
                # In float16 the scale of the loss, which grows for thousands of steps.
                "precision": trainer.precision_plugin.state_dict(),
                "keeper": self.best.state_dict(),
                "rows": self.rows,
            },
        )
        self._last = time.monotonic()
