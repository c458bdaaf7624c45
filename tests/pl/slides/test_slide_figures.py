"""Figures of a slide-level evaluation that is built by hand."""

from __future__ import annotations

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from sklearn.metrics import roc_auc_score

import sealst as sl
from sealst._core.scores.slide_evaluation import SlideEvaluation


def lines(ax) -> dict[str, plt.Line2D]:
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def test_curves_are_those_of_the_held_out_slides(classified):
    ax = sl.pl.roc(classified, n_bootstrap=20).axes[0]
    found = lines(ax)
    # The evaluation's own number with its interval where it has one; else the area that is drawn.
    frozen = classified.predictions.query("method == 'X_frozen'")
    area = roc_auc_score(frozen["truth"] == "high", frozen["p_high"])
    assert list(found) == ["adapted (X_seal), AUROC 0.90 (0.80 to 0.97)", f"frozen (X_frozen), AUROC {area:.2f}"]
    curve = found[list(found)[1]]
    assert np.trapezoid(curve.get_ydata(), curve.get_xdata()) == pytest.approx(area)
    n = (frozen["truth"] == "high").sum()
    assert ax.get_title() == f"grade: high ({n} of {len(frozen)} slides)"
    assert len(ax.collections) == 2
    assert not sl.pl.roc(classified, n_bootstrap=0).axes[0].collections
    level = sl.pl.precision_recall(classified, n_bootstrap=0).axes[0].lines[0]
    assert set(level.get_ydata()) == {n / len(frozen)}


@pytest.mark.parametrize(
    ("made", "labels", "said"),
    [
        ({"X_seal": "uni2-h-1c5cb8b7 at 112 µm, 224 px"}, ["frozen (X_seal)"], "of an encoder as published"),
        ({"X_seal": "1f2e3d4c5b6a7988", "X_frozen": "uni2-h-1c5cb8b7"}, ["adapted (X_seal)", "frozen (X_frozen)"],
         "of the same encoder as published"),
        ({"X_seal": "uni2-h-1c5cb8b7", "X_frozen": "1f2e3d4c5b6a7988"}, ["frozen (X_seal)", "adapted (X_frozen)"],
         "of the encoder after training with expression"),
        ({"X_seal": None, "X_frozen": None}, ["X_seal", "X_frozen"], None),
    ],
    ids=["plain encoder", "both", "interchanged", "unknown"],
)  # fmt: skip
def test_what_made_an_embedding_names_it_not_its_slot(classified, tmp_path, made, labels, said):
    frame = classified.predictions
    evaluation = dataclasses.replace(
        classified,
        predictions=frame[frame["method"].isin(list(made))],
        table=classified.table[classified.table["method"].isin([*made, "floor"])],
        facts=classified.facts | {"embeddings": made, "keys": list(made)},
    )
    legend = lines(sl.pl.roc(evaluation, n_bootstrap=0).axes[0])
    assert [text.split(", AUROC")[0] for text in legend] == labels
    sl.pl.slide_report(evaluation, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert all(label in page for label in labels)
    for other in ("adapted", "frozen"):
        assert (f"{other} (" in page) == any(label.startswith(other) for label in labels)
    assert said is None or said in page
    assert ("after training with expression" in page) == any(label.startswith("adapted") for label in labels)


def test_adapted_and_frozen_have_their_colours_everywhere(classified, regressed):
    figure = sl.pl.evaluation(
        pd.DataFrame(
            {
                "section": "a",
                "method": ["frozen + ridge", "adapted + ridge"],
                "genes": "g",
                "metric": "r2",
                "value": 1.0,
            }
        )
    )
    bars = [to_hex(container[0].get_facecolor()) for container in figure.axes[0].containers if len(container)]
    drawn = [to_hex(line.get_color()) for line in lines(sl.pl.roc(classified, n_bootstrap=0).axes[0]).values()]
    assert drawn == bars[::-1]


def test_three_classes_make_three_panels_and_labels_of_any_type_match(classified):
    frame = classified.predictions.assign(truth=np.arange(len(classified.predictions)) % 3.0)
    for i in range(3):
        frame[f"p_{i}"] = (frame["truth"] == i) * 1.0
    three = dataclasses.replace(
        classified, predictions=frame, facts=classified.facts | {"classes": {"grade": ["0", "1", "2"]}}
    )
    figure = sl.pl.roc(three, n_bootstrap=0)
    assert [ax.get_title().split(" (")[0] for ax in figure.axes] == ["grade: 0", "grade: 1", "grade: 2"]
    # The evaluation's AUROC is over all classes, so every panel shows its own.
    assert all("AUROC 1.00" in label for ax in figure.axes for label in lines(ax))
    assert len(sl.pl.roc(three, classes="1", n_bootstrap=0).axes) == 1


def test_a_class_without_held_out_slides_is_left_out(classified, tmp_path):
    """As in test slides of another hospital."""
    frame = classified.predictions.assign(truth=np.arange(len(classified.predictions)) % 2)
    frame = frame.assign(p_0=0.5, p_1=0.3, p_2=0.2)
    three = dataclasses.replace(
        classified, predictions=frame, facts=classified.facts | {"classes": {"grade": ["0", "1", "2"]}}
    )
    for draw in (sl.pl.roc, sl.pl.precision_recall):
        with pytest.warns(sl.SealstWarning, match="All held-out slides of 'grade' are not '2': no curve. Left out"):
            figure = draw(three, n_bootstrap=0)
        assert [ax.get_title().split(" (")[0] for ax in figure.axes] == ["grade: 0", "grade: 1"]
        with pytest.raises(sl.DataError, match="are not '2': no curve"):
            draw(three, classes=["1", "2"], n_bootstrap=0)
    one = dataclasses.replace(three, predictions=frame.assign(truth=0))
    with pytest.raises(sl.DataError, match="are '0': no curve"):
        sl.pl.roc(one, n_bootstrap=0)
    # The report names them in its text.
    sl.pl.slide_report(three, tmp_path / "report.html")
    assert "not &#39;2&#39;" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_reliability_shows_shares_and_counts(classified):
    figure = sl.pl.slide_calibration(classified, n_bins=4, methods="X_seal")
    ax = figure.axes[0]
    own = classified.predictions.query("method == 'X_seal'")
    counts = [bar.get_height() for bar in ax.child_axes[0].patches]
    places = np.minimum((own["p_high"] * 4).astype(int), 3)
    assert counts == places.value_counts().sort_index().tolist()
    (marks,) = [c.lines[0] for c in ax.containers]
    np.testing.assert_allclose(marks.get_ydata(), (own["truth"] == "high").groupby(places).mean())


def test_regression_puts_measured_over_predicted(regressed):
    figure = sl.pl.slide_calibration(regressed)
    assert [ax.get_title() for ax in figure.axes] == [
        "score, adapted (X_seal)\nr = 0.80 (0.60 to 0.90)",
        f"score, frozen (X_frozen)\nr = {correlation(regressed, 'X_frozen'):.2f}",
    ]
    own = regressed.predictions.query("method == 'X_seal'")
    points = figure.axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(points, own[["prediction", "truth"]].to_numpy())
    slope = np.polyfit(own["prediction"], own["truth"], 1)[0]
    assert figure.axes[0].texts[0].get_text() == f"slope {slope:.2f}, {len(own)} slides"


def correlation(evaluation: SlideEvaluation, method: str) -> float:
    own = evaluation.predictions.query("method == @method")
    return float(own["truth"].corr(own["prediction"]))


def test_patients_are_split_at_the_median_of_their_fold(survived):
    pytest.importorskip("sksurv")
    ax = sl.pl.kaplan_meier(survived, methods="X_seal", time_label="months").axes[0]
    own = survived.predictions.query("method == 'X_seal'")
    high = own["prediction"] > own.groupby("fold")["prediction"].transform("median")
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    groups = {"high risk": own[high], "low risk": own[~high]}
    assert labels == [f"{k} ({int(g['event'].sum())} of {len(g)} with event)" for k, g in groups.items()]
    assert ax.get_xlabel() == "months"
    assert "c-index 0.70 (0.60 to 0.80), log-rank p" in ax.get_title()
    # The folds' risks lie 100 apart: one cut through all of them would split by fold.
    pooled = sl.pl.kaplan_meier(survived, methods="X_seal", split="all").axes[0]
    assert pooled.get_title() != ax.get_title()
    risk = [int(t.get_text()) for t in ax.texts if t.get_gid() == "at risk"]
    ticks = [t for t in ax.get_xticks() if 0 <= t <= ax.get_xlim()[1]]
    assert risk == [int((g["time"] >= t).sum()) for g in groups.values() for t in ticks]


def test_where_the_groups_cannot_be_compared_the_title_says_so(survived):
    pytest.importorskip("sksurv")
    last = survived.predictions.assign(event=survived.predictions["time"] == survived.predictions["time"].max())
    titles = [
        sl.pl.kaplan_meier(dataclasses.replace(survived, predictions=frame), methods="X_seal").axes[0].get_title()
        for frame in (last, last.assign(event=False))
    ]
    assert "log-rank undefined" in titles[0]
    assert "no event" in titles[1]


def test_a_patient_with_several_slides_counts_once(survived):
    pytest.importorskip("sksurv")
    twice = pd.concat([survived.predictions, survived.predictions.assign(slide=lambda t: t["slide"] + "b")])
    double = dataclasses.replace(survived, predictions=twice)
    titles = [sl.pl.kaplan_meier(one).axes[0].get_title() for one in (survived, double)]
    assert titles[0] == titles[1]
    wrong = twice.reset_index(drop=True)
    wrong.loc[wrong.index[-1], "time"] += 1
    with pytest.raises(sl.DataError, match="Slides of patient\\(s\\) 'P39' state different times or events"):
        sl.pl.kaplan_meier(dataclasses.replace(survived, predictions=wrong))


def test_a_test_that_is_not_defined_is_called_so(survived):
    pytest.importorskip("sksurv")
    last = survived.predictions.assign(event=lambda t: t["time"] == t["time"].max())
    ax = sl.pl.kaplan_meier(dataclasses.replace(survived, predictions=last), methods="X_seal").axes[0]
    assert ax.get_title().endswith("log-rank undefined")
    none = survived.predictions.assign(event=False)
    ax = sl.pl.kaplan_meier(dataclasses.replace(survived, predictions=none), methods="X_seal").axes[0]
    assert ax.get_title().endswith("no event")


@pytest.mark.parametrize("draw", [sl.pl.roc, sl.pl.precision_recall])
def test_classes_without_slides_are_left_out(classified, draw):
    frame = classified.predictions.assign(p_none=0.0)
    three = classified.facts | {"classes": {"grade": ["low", "high", "none"]}}
    lacking = dataclasses.replace(classified, predictions=frame, facts=three)
    with pytest.warns(sl.SealstWarning, match="All held-out slides of 'grade' are not 'none': no curve"):
        figure = draw(lacking, n_bootstrap=0)
    assert [ax.get_title().split(" (")[0] for ax in figure.axes] == ["grade: low", "grade: high"]
    with pytest.raises(sl.DataError, match="are not 'none': no curve"):
        draw(lacking, classes=["low", "none"])


def test_wrong_evaluations_are_refused(classified, survived):
    with pytest.raises(TypeError, match=r"Expected a SlideEvaluation, .* found DataFrame"):
        sl.pl.roc(classified.table)
    with pytest.raises(
        sl.DataError, match="for classification, the evaluation is of survival. Its figures: `sl.pl.kap"
    ):
        sl.pl.roc(survived)
    with pytest.raises(sl.DataError, match="for survival, the evaluation is of classification"):
        sl.pl.kaplan_meier(classified)
    with pytest.raises(sl.MissingKeyError, match="`methods`: 'X_other' not found; found: 'X_seal', 'X_frozen'"):
        sl.pl.roc(classified, methods="X_other")
    with pytest.raises(sl.MissingKeyError, match="Column\\(s\\) 'p_high' not found in `.predictions`"):
        sl.pl.roc(dataclasses.replace(classified, predictions=classified.predictions.drop(columns="p_high")))
    one = classified.predictions.assign(truth="high")
    with pytest.raises(sl.DataError, match="All held-out slides of 'grade' are 'high': no curve"):
        sl.pl.roc(dataclasses.replace(classified, predictions=one))
    lonely = survived.predictions.assign(fold=lambda t: t["patient"])
    with pytest.raises(sl.DataError, match="use `split='all'`"):
        sl.pl.kaplan_meier(dataclasses.replace(survived, predictions=lonely))
    with pytest.raises(sl.DataError, match="`n_bootstrap` must not be negative"):
        sl.pl.roc(classified, n_bootstrap=-1)
