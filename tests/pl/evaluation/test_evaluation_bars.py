from __future__ import annotations

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection

import sealst as sl

METHODS = ("frozen + ridge", "adapted + ridge", "mean")


@pytest.fixture
def results() -> pd.DataFrame:
    rows = [
        {"section": s, "method": m, "genes": g, "metric": "pearson", "value": v, "low": v - 0.05, "high": v + 0.1}
        for g in ("hvg50", "heg50")
        for i, s in enumerate(("B4", "C2"))
        for m, v in zip(METHODS, (0.2 + i / 10, 0.3 + i / 10, 0.0), strict=True)
    ]
    rows += [
        {"section": s, "method": m, "genes": "", "metric": "R@10", "value": v, "chance": 0.05}
        for s in ("B4", "C2")
        for m, v in (("adapted", 0.4), ("frozen", 0.1))
    ]
    return pd.DataFrame(rows)


def test_a_panel_per_metric_and_gene_set_with_bars_at_their_values(results):
    axes = sl.pl.evaluation(results, metrics="all").axes
    assert [ax.get_title() for ax in axes] == ["Pearson r, hvg50", "Pearson r, heg50", "Recall at 10"]
    heights = {c.get_label(): [bar.get_height() for bar in c] for c in axes[0].containers if hasattr(c, "patches")}
    assert heights == {
        "frozen + ridge": pytest.approx([0.2, 0.3]),
        "adapted + ridge": pytest.approx([0.3, 0.4]),
        "mean": [0, 0],
    }
    assert [t.get_text() for t in axes[0].get_xticklabels()] == ["B4", "C2"]
    # Panels hold only the methods that were measured there.
    assert [c.get_label() for c in axes[2].containers if hasattr(c, "patches")] == ["adapted", "frozen"]


def test_error_bars_span_low_to_high(results):
    ax = sl.pl.evaluation(results, metrics="all").axes[0]
    bars = [c for c in ax.containers if hasattr(c, "patches")]
    (lines,) = bars[1].errorbar.lines[2]
    ends = np.array([segment[:, 1] for segment in lines.get_segments()])
    np.testing.assert_allclose(ends, [[0.25, 0.4], [0.35, 0.5]])


def test_bars_of_a_section_stand_together_without_overlap(results):
    ax = sl.pl.evaluation(results, metrics="all").axes[0]
    bars = sorted((b.get_x(), b.get_x() + b.get_width()) for c in ax.containers if hasattr(c, "patches") for b in c)
    assert all(right <= left for (_, right), (left, _) in zip(bars, bars[1:], strict=False))
    assert all(round((a + b) / 2) == i // 3 for i, (a, b) in enumerate(bars))


def test_chance_is_marked_and_the_legend_names_everything_once(results):
    figure = sl.pl.evaluation(results, metrics="all")
    (chance,) = [c for c in figure.axes[2].collections if c.get_label() == "chance"]
    np.testing.assert_allclose([s[0, 1] for s in chance.get_segments()], [0.05, 0.05])
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == [*METHODS, "adapted", "frozen", "chance"]


def test_without_intervals_there_are_no_error_bars(results):
    ax = sl.pl.evaluation(results.drop(columns=["low", "high"]), metrics="pearson").axes[0]
    assert all(c.errorbar is None for c in ax.containers)


def test_section_that_lacks_a_method_leaves_a_gap(results):
    fewer = results.drop(results.index[(results["section"] == "C2") & (results["method"] == "frozen + ridge")])
    ax = sl.pl.evaluation(fewer, metrics="all").axes[0]
    frozen = next(c for c in ax.containers if c.get_label() == "frozen + ridge")
    assert frozen[0].get_height() == pytest.approx(0.2)
    assert np.isnan(frozen[1].get_height())


def test_given_axes_for_one_panel(results):
    _, ax = plt.subplots()
    assert sl.pl.evaluation(results, metrics="R@10", ax=ax) is ax
    assert ax.get_legend() is not None
    with pytest.raises(sl.DataError, match="`ax` takes one panel, found 2"):
        sl.pl.evaluation(results, metrics="pearson", ax=ax)


def test_bad_tables_are_refused(results):
    with pytest.raises(sl.MissingKeyError, match=r"Column\(s\) 'value' not found in the table"):
        sl.pl.evaluation(results.drop(columns="value"))
    with pytest.raises(sl.DataError, match="1 bars have several values .*section 'B4', method 'frozen . ridge'"):
        sl.pl.evaluation(pd.concat([results, results.iloc[:1]]))
    with pytest.raises(sl.DataError, match="no rows"):
        sl.pl.evaluation(results.iloc[:0])
    with pytest.raises(sl.MissingKeyError, match=r"`metrics`: 'auc' not found; found: 'pearson', 'R@10'"):
        sl.pl.evaluation(results, metrics="auc")
    with pytest.raises(TypeError, match="Expected an Evaluation"):
        sl.pl.evaluation([1, 2])


def bar_of(ax, method):
    return next(c for c in ax.containers if hasattr(c, "patches") and c.get_label() == method)


def test_a_bar_of_height_0_is_seen(results):
    ax = sl.pl.evaluation(results, metrics="pearson").axes[0]
    lines = [c for c in ax.collections if isinstance(c, LineCollection) and c.get_zorder() == 3]
    (line,) = [one for one in lines if len(one.get_segments())]
    bar = bar_of(ax, "mean")
    assert [s[:, 0].mean() for s in line.get_segments()] == pytest.approx([b.get_x() + b.get_width() / 2 for b in bar])
    np.testing.assert_array_equal(line.get_colors()[0][:3], bar[0].get_facecolor()[:3])


@pytest.mark.parametrize("by", ["section", "method"])
def test_the_row_of_all_folds_is_the_bar_and_its_folds_are_dots(by):
    common = {"section": "", "method": "adapted + ridge", "genes": "hvg50", "metric": "pearson_difference"}
    values = {"A": (0.1, 0.0, 0.2), "B": (0.4, 0.3, 0.5), "": (0.16, 0.1, 0.3)}
    rows = [common | {"fold": f, "value": v, "low": low, "high": high} for f, (v, low, high) in values.items()]
    ax = sl.pl.evaluation(pd.DataFrame(rows), metrics="all", by=by).axes[0]
    bar = bar_of(ax, "adapted + ridge")
    assert [b.get_height() for b in bar] == [0.16]
    (lines,) = bar.errorbar.lines[2]
    np.testing.assert_allclose(lines.get_segments()[0][:, 1], [0.1, 0.3])
    dots = [c.get_offsets()[:, 1] for c in ax.collections if c.get_gid() == "values"]
    assert [sorted(found) for found in dots] == ([[0.1, 0.4]] if by == "section" else [])


def test_several_folds_and_seeds_become_a_mean_with_a_dot_per_value(results):
    twice = pd.concat([results.assign(seed=s, fold="0", value=results["value"] + s / 10) for s in (0, 1)])
    ax = sl.pl.evaluation(twice, metrics="pearson").axes[0]
    bar = bar_of(ax, "adapted + ridge")
    assert [b.get_height() for b in bar] == pytest.approx([0.35, 0.45])
    # A mean carries no interval of a single value.
    assert all(b.get_height() == pytest.approx(e) for b, e in zip(bar, [0.35, 0.45], strict=True))
    segments = [s for line in bar.errorbar.lines[2] for s in line.get_segments()] if bar.errorbar else []
    assert not [s for s in segments if np.ptp(s[:, 1]) > 0]
    dots = [c.get_offsets() for c in ax.collections if c.get_gid() == "values"]
    assert len(dots) == 6
    own = dots[2]
    np.testing.assert_allclose(own[:, 1], [0.3, 0.4])
    assert (own[:, 0] > bar[0].get_x()).all()
    assert (own[:, 0] < bar[0].get_x() + bar[0].get_width()).all()


def test_runs_put_below_one_another_may_repeat_the_labels_of_rows(evaluation):
    frames = {name: pd.concat([getattr(evaluation, name)] * 2) for name in ("table", "genes", "pathways")}
    frames["table"] = pd.concat([evaluation.table.assign(seed=evaluation.table["seed"] + k) for k in (0, 10)])
    joined = sl.tl.Evaluation(**frames)
    assert joined.table.index.is_unique
    assert joined.genes.index.is_unique
    section = evaluation.table.loc[evaluation.table["section"] != "", "section"].iloc[0]
    for table in (joined, frames["table"]):
        ax = sl.pl.evaluation(table, metrics="pearson", sections=[section], methods=["adapted + ridge"]).axes[0]
        assert len(bar_of(ax, "adapted + ridge").patches) == 1


def test_pooled_sections_are_shown_where_wanted(evaluation):
    def names(**options):
        ax = sl.pl.evaluation(evaluation, metrics="pearson", **options).axes[0]
        return [t.get_text() for t in ax.get_xticklabels()]

    assert names() == ["B4", "C2", "C3"]
    assert names(pooled=True) == ["B4", "C2", "C3", "all"]
    assert names(sections=["C3", "B4"]) == ["C3", "B4"]
    # Where a metric exists for all sections together only, there is nothing else to show.
    (ax,) = sl.pl.evaluation(evaluation, metrics="difference").axes
    assert [t.get_text() for t in ax.get_xticklabels()] == ["all"]


def test_one_bar_per_method_is_the_mean_over_sections(evaluation):
    ax = sl.pl.evaluation(evaluation, metrics="pearson", methods=["seal head", "mean"], by="method").axes[0]
    table = evaluation.table.query("metric == 'pearson' and genes == 'hvg10' and method == 'seal head' and section")
    single = table.groupby("section", sort=False)["value"].mean()
    (bar,) = bar_of(ax, "seal head")
    assert bar.get_height() == pytest.approx(single.mean())
    dots = next(c.get_offsets() for c in ax.collections if c.get_gid() == "values")
    np.testing.assert_allclose(dots[:, 1], single)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["mean of 3 sections"]
    assert [c.get_label() for c in ax.containers if hasattr(c, "patches")] == ["seal head", "mean"]


def test_methods_of_a_full_evaluation_have_colours_of_their_own(evaluation):
    figure = sl.pl.evaluation(evaluation, metrics=["pearson", "R@10", "calibration_slope"])
    bars = {c.get_label(): c[0].get_facecolor() for ax in figure.axes for c in ax.containers if hasattr(c, "patches")}
    assert len(bars) == len(set(bars.values())) == 10
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()][-2:] == ["chance", "calibrated"]
    (line,) = [one for one in figure.axes[3].lines if one.get_label() == "calibrated"]
    assert list(line.get_ydata()) == [1, 1]


def test_labels_name_the_direction_of_a_search(evaluation):
    (ax,) = sl.pl.evaluation(evaluation, metrics="gene→image R@10").axes
    assert ax.get_title() == "Gene → image, recall at 10"


def test_unknown_sections_methods_and_groups_are_refused(evaluation):
    with pytest.raises(sl.MissingKeyError, match="`sections`: 'D9' not found; found: 'B4', 'C2', 'C3'"):
        sl.pl.evaluation(evaluation, sections="D9")
    with pytest.raises(sl.MissingKeyError, match="`methods`: 'magic' not found; found: 'frozen . ridge'"):
        sl.pl.evaluation(evaluation, methods=["magic"])
    with pytest.raises(sl.DataError, match="`by`"):
        sl.pl.evaluation(evaluation, by="patient")
    with pytest.raises(sl.DataError, match="bars have several values"):
        sl.pl.evaluation(pd.concat([evaluation.table, evaluation.table.iloc[:1]]))


# -- the four panels --------------------------------------------------------------------------------------------------
def with_gain(evaluation):
    """The evaluation with the gain over the frozen encoder, over all folds and in each."""
    gains = {"adapted + ridge": 0.08, "seal head": 0.03, "colour + ridge": -0.2, "mean": -0.4}
    common = {"seed": 0, "section": "", "patient": "", "metric": "pearson_difference"}
    rows = [
        common | {"fold": fold, "method": m, "genes": g, "value": v + d, "low": v - 0.02, "high": v + 0.02}
        for m, v in gains.items()
        for g in ("hvg10", "heg10")
        for fold, d in (("0", -0.01), ("1", 0.01), ("", 0.0))
    ]
    return dataclasses.replace(evaluation, table=pd.concat([evaluation.table, pd.DataFrame(rows)]))


def test_by_default_four_panels_answer_the_question(evaluation):
    figure = sl.pl.evaluation(with_gain(evaluation))
    gain, recall, calibration, lost = figure.axes
    assert [ax.get_title() for ax in figure.axes] == [
        "Gain in Pearson r over frozen",
        "Recall at 10",
        "Calibration slope",
        "Share of genes worse than frozen",
    ]
    # The training mean, far below all else, would make the gain too small to see.
    assert "mean" not in gain.get_legend_handles_labels()[1]
    # Groups are gene sets.
    assert [t.get_text() for t in gain.get_xticklabels()] == ["hvg10", "heg10"]
    assert [bar.get_height() for bar in bar_of(gain, "adapted + ridge")] == pytest.approx([0.08, 0.08])
    assert set(recall.get_legend_handles_labels()[1]) >= {"adapted", "frozen", "chance"}
    assert [t.get_text() for t in calibration.get_xticklabels()] == ["hvg10", "heg10"]
    # The share, computed otherwise.
    genes = evaluation.genes[evaluation.genes["section"] != ""]
    frozen, adapted = (
        genes[genes["method"] == m].set_index(["fold", "seed", "section", "gene"])["pearson"]
        for m in ("frozen + ridge", "adapted + ridge")
    )
    (bar,) = bar_of(lost, "adapted + ridge")
    assert bar.get_height() == pytest.approx(float((adapted.loc[frozen.index] < frozen).mean()))
    # All the rest is there for the asking, and one panel too.
    every = sl.pl.evaluation(with_gain(evaluation), metrics="all")
    assert len(every.axes) > 20
    assert [ax.get_title() for ax in sl.pl.evaluation(evaluation, metrics="R@10").axes] == ["Recall at 10"]


def test_what_was_not_evaluated_is_left_out_of_the_four(evaluation, results):
    # A frozen encoder alone gains nothing: the correlation itself stands in the place of the gain.
    alone = with_gain(evaluation)
    alone = dataclasses.replace(
        alone,
        table=alone.table[alone.table["method"].isin(["frozen + ridge", "colour + ridge", "mean"])],
        genes=alone.genes.iloc[:0],
    )
    titles = [ax.get_title() for ax in sl.pl.evaluation(alone).axes]
    assert titles == ["Pearson r", "Recall at 10", "Calibration slope"]
    # Of a table there are no single genes.
    assert [ax.get_title() for ax in sl.pl.evaluation(results).axes] == ["Pearson r", "Recall at 10"]
    other = results.assign(metric="auc")
    assert [ax.get_title() for ax in sl.pl.evaluation(other).axes] == ["Auc, hvg50", "Auc, heg50", "Auc"]


def test_a_method_has_one_colour_in_every_figure():
    from sealst.pl._evaluation.methods import colours_of

    both = colours_of(["mine", "frozen + ridge", "other"])
    assert colours_of(["other"])["other"] == both["other"]
    assert colours_of(["other", "adapted", "mine"])["mine"] == both["mine"]
    assert len(set(both.values())) == 3
    many = colours_of([f"baseline {i}" for i in range(8)])
    assert len(set(many.values())) == 8
