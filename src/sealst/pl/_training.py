"""Loss curves and validation metrics of a training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sealst._docs import documented
from sealst._errors import DataError, MissingKeyError, OrderError
from sealst._text_table import read_text_table
from sealst._validate import listed
from sealst.pl import _base

#: the log in a run folder, and the history in a model's folder
_FILES = ("metrics.csv", "history.csv")
_STAGES = {"warmup": "warm-up", "align": "alignment"}
#: losses that differ by more than this factor are drawn on a logarithmic axis
_LOG_RANGE = 30.0
_WIDTH_IN, _HEIGHT_IN, _COLUMNS = 3.4, 2.9, 4


@documented
def training(
    history: Any,
    *,
    metrics: str | Sequence[str] | None = None,
    stages: str | Sequence[str] | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
) -> Figure | Axes:
    """Draw the losses by part and the validation metrics over epochs.

    One panel per stage shows its losses (solid: training, dashed: validation), one panel per metric shows how well the
    held-out spots are predicted or retrieved; a dashed line is the score of a ridge probe on the frozen encoder, where
    it was recorded.

    Parameters
    ----------
    history
        A model, its ``.history`` (columns ``stage``, ``epoch``, ``train_<loss>``, ``val_<loss or metric>``,
        ``baseline_<metric>``), the folder of a run (``metrics.csv``) or of a model (``history.csv``), or such a file.
    metrics
        Validation metrics to show, without ``val_`` (``"pearson"``, ``"recall@10"``); by default all, ``[]`` for none.
    stages
        Stages whose losses to show (``"warmup"``, ``"align"``); by default all, ``[]`` for none.
    %(ax)s
    %(figure)s

    Raises
    ------
    DataError
        When the file is absent, or there is neither a loss nor a metric to show.
    MissingKeyError
        When a metric, a stage or the epoch is not recorded.
    OrderError
        When the model has no history.

    Examples
    --------
    >>> import pandas as pd, sealst as sl
    >>> history = pd.DataFrame({"stage": "align", "epoch": [0, 1], "train_loss": [3.0, 2.0], "val_pearson": [0.1, 0.2]})
    >>> len(sl.pl.training(history).axes)
    2
    """
    _base.check_save(save)
    frame = _read(history)
    names = [c.removeprefix("train_") for c in frame if c.startswith("train_") and frame[c].notna().any()]
    losses = sorted(names, key=lambda name: name != "loss")
    names = [c.removeprefix("val_") for c in frame if c.startswith("val_") and frame[c].notna().any()]
    known = [name for name in names if name not in losses and name != "loss"]
    wanted = _select(metrics, known, what="Metric(s)")
    of_losses = frame[[f"train_{name}" for name in losses]].notna().any(axis=1)
    recorded = [str(stage) for stage in frame.loc[of_losses, "stage"].unique()]
    shown = _select(stages, recorded, what="Losses of stage(s)")
    n_panels = len(shown) + len(wanted)
    if not n_panels and (known or recorded):
        raise DataError("`metrics` and `stages` leave nothing to show; name one of them, or leave one out.")
    if not n_panels:
        raise DataError(f"Expected columns `train_<loss>` or `val_<metric>`, found {listed(frame.columns, 20)}.")
    _base.check_single(ax, n_panels, how="`stages=` and `metrics=`, of which one is `[]`")

    axes = [ax] if ax is not None else _base.grid_axes(n_panels, min(n_panels, _COLUMNS), size=(_WIDTH_IN, _HEIGHT_IN))
    colours = dict(zip(losses, _base.COLOURS * len(losses), strict=False))
    for one, stage in zip(axes, shown, strict=False):
        own, seen = frame[frame["stage"] == stage], []
        for name, colour in colours.items():
            if name == "loss":
                total = own["train_loss"].to_numpy(dtype=float)
                parts = [own[f"train_{part}"].to_numpy(dtype=float) for part in colours if part != "loss"]
                if any(np.allclose(part, total, equal_nan=True) for part in parts):
                    # Nothing but one of its parts, as in the warm-up: two lines would hide each other.
                    continue
            label = "total" if name == "loss" else name
            for column, line in ((f"train_{name}", "-"), (f"val_{name}", "--")):
                if column in own and own[column].notna().any():
                    kept = own.dropna(subset=[column])
                    text = label if line == "-" else f"{label}, validation"
                    _line(one, kept["epoch"], kept[column], colour=colour, style=line, label=text)
                    seen += kept[column].tolist()
        if seen and min(seen) > 0 and max(seen) / min(seen) > _LOG_RANGE:
            one.set_yscale("log")
        _finish_axes(one, f"Losses, {_STAGES.get(stage, stage)}", "loss")
    for one, metric in zip(axes[len(shown) :], wanted, strict=True):
        kept = frame.dropna(subset=[f"val_{metric}"])
        several = kept["stage"].nunique() > 1
        for i, (of_stage, rows) in enumerate(kept.groupby("stage", sort=False)):
            label = f"model, {_STAGES.get(str(of_stage), of_stage)}" if several else "model"
            _line(one, rows["epoch"], rows[f"val_{metric}"], colour=_base.COLOURS[i], style="-", label=label)
        column = f"baseline_{metric}"
        if column in frame and frame[column].notna().any():
            value = float(frame[column].dropna().iloc[-1])
            label = f"frozen encoder + ridge, {value:.3g}"
            one.axhline(value, color=_base.GREY, linestyle="--", linewidth=1.2, label=label)
        _finish_axes(one, f"{_base.metric_label(metric)}, validation", "")
    return _base.finish(_base.figure_of(axes[0]), ax, save, show)


def _select(given: str | Sequence[str] | None, known: list[str], *, what: str) -> list[str]:
    """Metrics or stages to show: all, or the named ones in their order; an empty list means none."""
    if given is None:
        return known
    names = [name.removeprefix("val_") for name in ([given] if isinstance(given, str) else given)]
    if unknown := [name for name in names if name not in known]:
        raise MissingKeyError(f"{what} {listed(unknown)} not in the history; found: {listed(known)}.")
    return names


def _read(history: Any) -> pd.DataFrame:
    if isinstance(history, str | Path):
        path = Path(history)
        files = [path / name for name in _FILES] if path.is_dir() else [path]
        found = [file for file in files if file.is_file()]
        if not found:
            raise DataError(
                f"No training history at {str(path)!r}: expected {listed(f.name for f in files)}. Pass the run folder, "
                "a model or its `.history`."
            )
        history = read_text_table(found[0])
    frame = history if isinstance(history, pd.DataFrame) else getattr(history, "history", None)
    if frame is None and not hasattr(history, "history"):
        raise TypeError(f"Expected a DataFrame, a model with `.history` or a path, found {type(history).__name__}.")
    if frame is None or not len(frame):
        raise OrderError("The model has no training history; `sl.tl.finetune(...)` writes it. Pass the run folder.")
    if "epoch" not in frame:
        raise MissingKeyError(f"'epoch' not found in the history; found: {listed(frame.columns, 20)}.")
    # A log has several rows per epoch, each with some of the columns; the last value of each counts.
    frame = frame if "stage" in frame else frame.assign(stage="align")
    keys = [frame["stage"].astype(str).rename("stage"), frame["epoch"].rename("epoch")]
    values = frame.drop(columns=["stage", "epoch"]).select_dtypes("number")
    return values.groupby(keys, sort=False).last().reset_index().dropna(subset=["epoch"])


def _line(ax: Axes, x: pd.Series, y: pd.Series, *, colour: str, style: str, label: str) -> None:
    # Markers, so that a single epoch is visible.
    ax.plot(np.asarray(x), np.asarray(y), style, color=colour, linewidth=1.5, marker="o", markersize=3, label=label)


def _finish_axes(ax: Axes, title: str, ylabel: str) -> None:
    ax.set_title(title, fontsize=_base.TITLE_SIZE + 1)
    ax.set_xlabel("epoch", fontsize=_base.TITLE_SIZE)
    ax.set_ylabel(ylabel, fontsize=_base.TITLE_SIZE)
    ax.tick_params(labelsize=_base.SMALL_SIZE + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=_base.SMALL_SIZE, frameon=False)
