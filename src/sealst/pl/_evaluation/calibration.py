"""Whether predictions mean what they say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sealst import _section
from sealst._docs import documented
from sealst._evaluation import Evaluation
from sealst._validate import check_count
from sealst.pl import _base
from sealst.pl._base import plain
from sealst.pl._evaluation.methods import colours_of, dense, pick, require_spots

#: a bin with fewer values says little
_MIN_IN_BIN = 5


@documented
def calibration(
    evaluation: Evaluation,
    *,
    methods: str | Sequence[str] | None = None,
    sections: str | Sequence[str] | None = None,
    genes: Sequence[str] | None = None,
    n_bins: int = 10,
    n_cols: int | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
    show: bool | None = None,
) -> Figure | Axes:
    """Compare what was predicted with what was measured there, one line per method and one panel per section.

    All pairs of spot and gene of a section are sorted by the prediction and cut into bins of equal size; a dot is the
    mean of a bin. Each gene's measured mean is taken off both sides, because differences between genes would otherwise
    put every method on the diagonal. On the diagonal, predictions are calibrated; a flatter line says that a method
    promises larger differences between spots than there are, a steeper one that it is too cautious.

    Parameters
    ----------
    evaluation
        What `tl.evaluate` returns, with held-out spots in ``.spots``.
    methods
        Methods to show; by default all.
    %(shown.sections)s
    genes
        Genes to pool; by default all that were scored.
    n_bins
        Bins per method.
    %(by_number.n_cols)s
    %(ax)s
    %(figure)s

    Raises
    ------
    MissingKeyError
        When a method, a section or a gene is absent.
    DataError
        When no spots were kept.

    Examples
    --------
    >>> import sealst as sl
    >>> figure = sl.pl.calibration(evaluation, save="calibration.png")  # doctest: +SKIP
    """
    _base.check_save(save)
    check_count("n_bins", n_bins)
    spots = require_spots(evaluation).spots
    names = pick("sections", sections, list(spots))
    known = list(dict.fromkeys(m for name in names for m in _section.layer_names(spots[name])))
    chosen = pick("methods", methods, known)
    _base.check_single(ax, len(names), how="`sections=`")
    lines = {
        name: {m: _bin_means(spots[name], m, genes, n_bins) for m in chosen if m in spots[name].layers}
        for name in names
    }
    n_cols = _base.columns_of(len(names), n_cols)
    # Key and spaces of the legend are half an inch wide.
    legend = 0.55 + max(_base.text_width(text, _base.SMALL_SIZE) for text in (*chosen, "calibrated"))
    axes = [ax] if ax is not None else _base.square_axes(len(names), n_cols, right=legend)
    colours = colours_of(known)
    values = np.concatenate([line.ravel() for own in lines.values() for line in own.values()] or [np.zeros(1)])
    edge = 1.08 * float(np.abs(values).max(initial=0.05))
    for one, (name, own) in zip(axes, lines.items(), strict=True):
        one.set_xlim(-edge, edge)
        one.set_ylim(-edge, edge)
        one.set_aspect("equal", adjustable="box")
        plain(one)
        for method, means in own.items():
            one.plot(*means.T, color=colours[method], marker="o", markersize=3, linewidth=1.2, label=method)
        diagonal = (-edge, edge)
        one.plot(diagonal, diagonal, color="black", linewidth=0.8, linestyle="--", zorder=1, label="calibrated")
        one.set_title(_base.shorten(name, 40), fontsize=_base.TITLE_SIZE)
        one.set_xlabel(f"predicted ({_base.EXPRESSION_UNIT} less mean)", fontsize=_base.SMALL_SIZE + 1)
        one.set_ylabel(f"measured ({_base.EXPRESSION_UNIT} less mean)", fontsize=_base.SMALL_SIZE + 1)
    handles = {text: h for one in axes for h, text in zip(*one.get_legend_handles_labels(), strict=True)}
    # Beside the panel at the end of the first row: inside it would hide lines.
    last = axes[min(n_cols, len(axes)) - 1]
    style = {"fontsize": _base.SMALL_SIZE, "frameon": False, "borderaxespad": 0}
    last.legend(list(handles.values()), list(handles), loc="upper left", bbox_to_anchor=(1.03, 1), **style)
    return _base.finish(_base.figure_of(axes[0]), ax, save, show)


def _bin_means(spots: AnnData, method: str, genes: Sequence[str] | None, n_bins: int) -> np.ndarray:
    """Mean predicted and measured deviation of every bin (bins, 2)."""
    chosen = pick("genes", genes, [str(g) for g in spots.var_names])
    columns = spots.var_names.get_indexer(chosen)
    measured, predicted = dense(spots.X)[:, columns], dense(spots.layers[method])[:, columns]
    known = np.isfinite(measured) & np.isfinite(predicted)
    level = np.divide(
        np.where(known, measured, 0).sum(0), known.sum(0), out=np.zeros(len(columns)), where=known.any(axis=0)
    )
    x, y = (predicted - level)[known], (measured - level)[known]
    order = np.argsort(x, kind="stable")
    parts = [part for part in np.array_split(order, n_bins) if len(part)]
    parts = [part for part in parts if len(part) >= _MIN_IN_BIN] or [order]
    means = np.array([[x[part].mean(), y[part].mean()] for part in parts if len(part)])
    if len(means) and np.ptp(means[:, 0]) < 1e-4:
        # A constant prediction is one point, whatever order its ties stand in.
        means = np.array([[x.mean(), y.mean()]])
    return means.reshape(-1, 2)
