"""`sl.pl.learning_curve`, and the curve as a panel of `sl.pl.evaluation`."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

import sealst as sl
from sealst.pl._evaluation.methods import colours_of

FROZEN, ADAPTED = "frozen + ridge", "adapted + ridge"


@pytest.fixture
def curve() -> pd.DataFrame:
    """Two folds of four training patients; three parts of a half, which differ by ± 0.02."""
    rows = []
    for fold, level in (("A", 0.1), ("B", 0.3)):
        for method, gain in ((FROZEN, 0.0), (ADAPTED, 0.1), ("mean", -level)):
            for fraction, n, draws in ((0.25, 1, (-0.02, 0.0, 0.02)), (0.5, 2, (-0.01, 0.01)), (1.0, 4, (0.0,))):
                for draw, shift in enumerate(draws):
                    facts = {"fraction": fraction, "n_patients": n, "n_sections": n, "n_spots": 100 * n}
                    value = level + gain * n + shift if method != "mean" else 0.0
                    rows.append({**facts, "fold": fold, "draw": draw, "method": method, "value": value})
    one = pd.DataFrame(rows).assign(seed=0, metric="pearson")
    return pd.concat([one.assign(genes="hvg10"), one.assign(genes="heg10", value=one["value"] / 2)], ignore_index=True)


def line_of(ax, method):
    (line,) = [line for line in ax.lines if line.get_label() == method]
    return line


def test_a_line_is_the_mean_over_folds_and_the_band_what_is_drawn(curve):
    figure = sl.pl.learning_curve(curve)
    first, second = figure.axes
    assert [ax.get_title() for ax in (first, second)] == [
        "Learning from more: Pearson r, hvg10",
        "Learning from more: Pearson r, heg10",
    ]
    line = line_of(first, ADAPTED)
    np.testing.assert_allclose(line.get_xdata(), [1, 2, 4])
    np.testing.assert_allclose(line.get_ydata(), [0.3, 0.4, 0.6])
    np.testing.assert_allclose(line_of(second, ADAPTED).get_ydata(), [0.15, 0.2, 0.3])
    folds = [np.asarray(line.get_ydata()) for line in first.lines if line.get_gid() == "folds"]
    np.testing.assert_allclose(folds, [[0.1] * 3, [0.3] * 3, [0.2, 0.3, 0.5], [0.4, 0.5, 0.7]])
    bands = [c.get_paths()[0].vertices for c in first.collections if c.get_gid() == "draws"]
    widths = [np.ptp(band[np.isclose(band[:, 0], at), 1]) for band in bands for at in (1, 2, 4)]
    np.testing.assert_allclose(widths, [0.04, 0.02, 0] * 2, atol=1e-12)
    assert [t.get_text() for t in first.get_xticklabels()] == ["1", "2", "4"]
    assert first.get_xlabel() == "training patients"
    assert to_hex(line.get_color()) == colours_of([ADAPTED])[ADAPTED].lower()
    # Floors and what else there is are for those who ask.
    assert [t.get_text() for t in first.get_legend().get_texts()] == [FROZEN, ADAPTED]
    only = sl.pl.learning_curve(curve, genes="heg10", methods=["mean"])
    assert [line.get_label() for line in only.axes[0].lines if line.get_gid() != "folds"] == ["mean"]


def test_the_axis_counts_what_parts_differ_in(curve):
    sections = curve.assign(n_patients=1)
    assert sl.pl.learning_curve(sections, genes="hvg10").axes[0].get_xlabel() == "training sections"
    spots = sl.pl.learning_curve(curve.assign(n_patients=1, n_sections=1, n_spots=curve["n_spots"] * 10), genes="hvg10")
    assert spots.axes[0].get_xlabel() == "training spots"
    assert [t.get_text() for t in spots.axes[0].get_xticklabels()] == ["1,000", "2,000", "4,000"]


def test_an_evaluation_without_a_curve_says_how_to_get_one(evaluation):
    with pytest.raises(sl.OrderError, match=r"no learning curve; run `sl.tl.evaluate\(..., train_fractions="):
        sl.pl.learning_curve(evaluation)


def test_names_that_are_not_there_are_refused(curve):
    with pytest.raises(sl.MissingKeyError, match="`genes`: 'x' not found; found: 'hvg10', 'heg10'"):
        sl.pl.learning_curve(curve, genes="x")
    with pytest.raises(sl.MissingKeyError, match="`metrics`: 'R@10' not found; found: 'pearson'"):
        sl.pl.learning_curve(curve, metrics="R@10")
    with pytest.raises(sl.MissingKeyError, match=r"Column\(s\) 'fraction' not found in the learning curve"):
        sl.pl.learning_curve(curve.drop(columns="fraction"))


def test_it_is_a_panel_of_the_evaluation(evaluation, curve):
    without = sl.pl.evaluation(evaluation)
    found = dataclasses.replace(evaluation, curve=curve)
    figure = sl.pl.evaluation(found)
    assert len(figure.axes) == len(without.axes) + 1
    panel = figure.axes[-1]
    assert panel.get_title() == "Learning from more: Pearson r, hvg10"
    np.testing.assert_allclose(line_of(panel, FROZEN).get_ydata(), [0.2] * 3)
    # One legend, and a method is the same colour in bars and lines.
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert texts == [t.get_text() for t in without.legends[0].get_texts()]
    assert len(sl.pl.evaluation(found, methods=[FROZEN]).axes[-1].lines) == 3
    assert len(sl.pl.evaluation(found, metrics="pearson").axes) == len(
        sl.pl.evaluation(evaluation, metrics="pearson").axes
    )


def test_the_report_asks_whether_more_data_would_help(evaluation, curve, tmp_path):
    plain = sl.pl.report(evaluation, tmp_path / "plain.html").read_text(encoding="utf-8")
    assert "Would more data help?" not in plain
    found = dataclasses.replace(evaluation, curve=curve)
    page = sl.pl.report(found, tmp_path / "curve.html").read_text(encoding="utf-8")
    assert "Would more data help?" in page
    assert (
        "Learning curve, adapted + ridge, hvg10: from half to all of the training patients (2 → 4): r 0.400 → 0.600, "
        "+0.200 ± 0.000 over 2 folds; still rising." in page
    )
    assert "what lies beyond all of the data was not tried" in page
