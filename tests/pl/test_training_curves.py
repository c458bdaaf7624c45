from __future__ import annotations

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import sealst as sl


@pytest.fixture
def history() -> pd.DataFrame:
    warmup = pd.DataFrame({"stage": "warmup", "epoch": [1, 2], "train_loss": [3.0, 2.0], "train_gene": [3.0, 2.0]})
    align = pd.DataFrame(
        {
            "stage": "align",
            "epoch": [1, 2, 3],
            "step": [10, 20, 30],
            "train_loss": [9.0, 7.0, 6.0],
            "train_contrast": [6.0, 5.0, 4.5],
            "train_image": [1.5, 1.0, 0.8],
            "train_gene": [1.5, 1.0, 0.7],
            "val_pearson": [0.1, 0.2, 0.25],
            "val_recall@10": [0.2, 0.3, 0.4],
            "baseline_pearson": 0.18,
        }
    )
    return pd.concat([warmup, align], ignore_index=True)


def _lines(ax) -> dict[str, np.ndarray]:
    return {line.get_label(): np.asarray(line.get_ydata()) for line in ax.lines}


def test_a_panel_per_stage_and_per_metric(history):
    axes = sl.pl.training(history).axes
    assert [ax.get_title() for ax in axes] == [
        "Losses, warm-up",
        "Losses, alignment",
        "Pearson r, validation",
        "Recall at 10, validation",
    ]
    # In the warm-up the total is the gene loss: one line, not two on top of each other.
    assert list(_lines(axes[0])) == ["gene"]
    lines = _lines(axes[1])
    assert set(lines) == {"total", "contrast", "image", "gene"}
    np.testing.assert_array_equal(lines["contrast"], [6.0, 5.0, 4.5])
    np.testing.assert_array_equal(axes[1].lines[0].get_xdata(), [1, 2, 3])


def test_one_stage_or_metric_goes_into_given_axes(history):
    _, (left, right) = plt.subplots(1, 2)
    assert sl.pl.training(history, stages="align", metrics=[], ax=left) is left
    assert left.get_title() == "Losses, alignment"
    assert sl.pl.training(history, stages=[], metrics="pearson", ax=right) is right
    assert right.get_title() == "Pearson r, validation"
    with pytest.raises(sl.MissingKeyError, match=r"stage\(s\) 'finish' not in the history; found: 'warmup', 'align'"):
        sl.pl.training(history, stages="finish")
    with pytest.raises(sl.DataError, match="leave nothing to show"):
        sl.pl.training(history, stages=[], metrics=[])


def test_baseline_is_drawn_where_recorded(history):
    axes = sl.pl.training(history).axes
    assert set(_lines(axes[2])) == {"model", "frozen encoder + ridge, 0.18"}
    assert _lines(axes[2])["frozen encoder + ridge, 0.18"][0] == 0.18
    assert set(_lines(axes[3])) == {"model"}


def test_a_part_keeps_its_colour_in_both_stages(history):
    warmup, align, *_ = sl.pl.training(history).axes
    colour = {line.get_label(): line.get_color() for line in align.lines}
    assert warmup.lines[0].get_color() == colour["gene"]
    assert len(set(colour.values())) == 4


def test_chosen_metrics(history):
    titles = [ax.get_title() for ax in sl.pl.training(history, metrics="recall@10").axes]
    assert titles[2:] == ["Recall at 10, validation"]
    with pytest.raises(
        sl.MissingKeyError, match=r"Metric\(s\) 'auc' not in the history; found: 'pearson', 'recall@10'"
    ):
        sl.pl.training(history, metrics="auc")


def test_validation_losses_share_the_panel_of_their_training_loss(history):
    history["val_loss"] = history["train_loss"] * 1.2
    figure = sl.pl.training(history)
    assert len(figure.axes) == 4
    assert _lines(figure.axes[1])["total, validation"] == pytest.approx([10.8, 8.4, 7.2])


def test_model_folder_and_file_give_the_same_curves(history, tmp_path):
    expected = [_lines(ax) for ax in sl.pl.training(history).axes]
    for name in ("metrics.csv", "history.csv"):
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        history.to_csv(folder / name, index=False)
        for source in (folder, folder / name, str(folder), SimpleNamespace(history=history)):
            found = [_lines(ax) for ax in sl.pl.training(source).axes]
            for one, other in zip(expected, found, strict=True):
                assert list(one) == list(other)
                for label in one:
                    np.testing.assert_allclose(one[label], other[label])


def test_rows_of_one_epoch_are_merged():
    log = pd.DataFrame(
        {"epoch": [0, 0, 1, 1], "train_loss": [2.0, np.nan, 1.0, np.nan], "val_pearson": [np.nan, 0.1] * 2}
    )
    axes = sl.pl.training(log).axes
    np.testing.assert_array_equal(axes[0].lines[0].get_ydata(), [2.0, 1.0])
    np.testing.assert_array_equal(axes[1].lines[0].get_ydata(), [0.1, 0.1])


def test_a_wide_range_of_losses_is_logarithmic(history):
    assert sl.pl.training(history).axes[1].get_yscale() == "linear"
    history["train_image"] /= 100
    assert sl.pl.training(history).axes[1].get_yscale() == "log"


def test_what_is_missing_is_named(history, tmp_path):
    with pytest.raises(sl.DataError, match=r"No training history at .*expected 'metrics.csv', 'history.csv'"):
        sl.pl.training(tmp_path)
    with pytest.raises(sl.OrderError, match="The model has no training history"):
        sl.pl.training(SimpleNamespace(history=pd.DataFrame()))
    with pytest.raises(TypeError, match="Expected a DataFrame, a model with `.history` or a path, found int"):
        sl.pl.training(3)
    with pytest.raises(sl.MissingKeyError, match="'epoch' not found in the history"):
        sl.pl.training(history.drop(columns="epoch"))
    with pytest.raises(sl.DataError, match="Expected columns `train_<loss>` or `val_<metric>`"):
        sl.pl.training(history[["stage", "epoch", "step"]])
