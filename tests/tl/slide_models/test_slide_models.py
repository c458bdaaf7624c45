"""Slide models on a drawn cohort whose truth is known: the share of one kind of tile decides the label."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from sklearn.metrics import roc_auc_score

import sealst as sl
from sealst.tl._slide_models.labels import labels_of

for _module in ("torchmil", "sksurv"):
    pytest.importorskip(_module)

DIM, TILES = 8, 40
QUICK: dict[str, Any] = {"epochs": 8, "hidden": 16, "attention": 8, "lr": 1e-2, "dropout": 0.1, "patience": 4}
FAST: dict[str, Any] = QUICK | {"epochs": 1}


@cache
def cohort(n: int = 60, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], pd.DataFrame]:
    """Embeddings, planted tiles and labels of `n` slides, two slides of every third patient."""
    rng = np.random.default_rng(seed)
    planted = np.zeros(DIM)
    planted[0] = 4.0
    features, truth, rows = {}, {}, []
    for i in range(n):
        name = f"s{i:02d}"
        share = rng.uniform(0.15, 0.5) if i % 2 else 0.0
        truth[name] = rng.random(TILES) < share
        x = rng.normal(size=(TILES, DIM))
        x[truth[name]] += planted
        features[name] = x.astype(np.float32)
        time = float(rng.exponential(np.exp(-10 * share)) + 0.01)
        rows.append({"slide": name, "patient": f"p{seed}.{i - 2 if i % 6 > 3 else i}", "grade": ("low", "high")[i % 2],
                     "share": share, "time": time, "event": int(rng.random() < 0.8)})  # fmt: skip
    labels = pd.DataFrame(rows)
    labels["grade"] = pd.Categorical(labels["grade"], categories=["low", "high"])
    labels["permuted"] = rng.permutation(labels["grade"].astype(str))
    return features, truth, labels


def bags_of(n: int = 60, seed: int = 0) -> sl.io.Bags:
    features, _, labels = cohort(n, seed)
    return sl.io.read_bags(features, labels=labels)


def table_of(name: str, features: np.ndarray, *, model: str = "a" * 16, frozen: bool = False) -> AnnData:
    """Tiles as `tl.embed` leaves them."""
    table = AnnData(np.zeros((len(features), 0), dtype=np.float32))
    table.obs_names = [f"{i}x0" for i in range(len(features))]
    table.obs["section"], table.obs["patient"] = name, f"patient of {name}"
    table.obsm["X_seal"] = features
    table.obsm["spatial"] = np.column_stack([np.arange(len(features)) * 100.0, np.zeros(len(features))])
    made = {"X_seal": {"model": model}}
    if frozen:
        noise = np.random.default_rng(len(features)).normal(size=features.shape)
        table.obsm["X_frozen"], made["X_frozen"] = noise.astype(np.float32), {"model": "frozen"}
    table.uns["sealst"] = {"embed": made}
    return table


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Steps of this size are over before a second thread wakes up."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def graded() -> sl.models.SlideModel:
    """ABMIL of the grade on sections with adapted and frozen embeddings; the frozen ones are noise."""
    features, _, labels = cohort()
    tables = {name: table_of(name, x, frozen=True) for name, x in features.items()}
    bags = sl.io.read_bags(tables, labels=labels)
    return sl.tl.fit_slide(bags, "grade", folds=2, params=QUICK, n_bootstrap=50)


def value(model: sl.models.SlideModel, metric: str, method: str = "features", fold: str = "") -> float:
    table = model.evaluation.table
    return float(table.query("metric == @metric and method == @method and fold == @fold")["value"].iloc[0])


# -- what is found ----------------------------------------------------------------------------------------------------
def test_planted_tiles_decide_the_grade(graded: sl.models.SlideModel) -> None:
    assert value(graded, "auroc", "X_seal") >= 0.95
    assert value(graded, "auroc", "floor") == 0.5
    assert abs(value(graded, "auroc", "X_frozen") - 0.5) < 0.3
    table = graded.evaluation.table.query("metric == 'auroc' and fold == ''").set_index("method")
    difference = table.loc["X_seal - X_frozen"]
    assert difference["value"] == pytest.approx(table.loc["X_seal", "value"] - table.loc["X_frozen", "value"])
    assert 0 < difference["low"] <= difference["value"] <= difference["high"]
    assert table.loc["X_seal", "n"] == 60
    assert table.loc["X_seal", "n_patients"] == cohort()[2]["patient"].nunique()
    assert graded.evaluation.facts["keys"] == ["X_seal", "X_frozen"]


def test_what_is_shown(graded: sl.models.SlideModel) -> None:
    """A metric that is undefined for all stays, with its rows in their order; names are escaped."""
    table = graded.evaluation.table.copy()
    table.loc[table["metric"] == "f1", "value"] = np.nan
    shown = dataclasses.replace(graded.evaluation, table=table).summary()
    assert shown["f1"].isna().all()
    assert list(shown.columns) == list(dict.fromkeys(table["metric"]))
    assert list(shown.index.get_level_values("method")) == list(dict.fromkeys(table["method"]))
    pd.testing.assert_frame_equal(shown.drop(columns="f1"), graded.evaluation.summary().drop(columns="f1"))
    page = graded._repr_html_()
    assert "classification" in page
    assert "auroc" in page
    assert "None" not in page


def test_attention_finds_the_planted_tiles_of_new_patients(graded: sl.models.SlideModel) -> None:
    features, truth, _ = cohort(12, seed=9)
    found = []
    for name, x in features.items():
        if truth[name].any():
            table = table_of(name, x)
            sl.tl.predict_slide(table, graded)
            assert table.obs["seal_attention"].sum() == pytest.approx(1)
            found.append(roc_auc_score(truth[name], table.obs["seal_attention"]))
    assert np.mean(found) >= 0.9


def test_permuted_labels_are_not_found() -> None:
    model = sl.tl.fit_slide(bags_of(), "permuted", folds=2, params=QUICK | {"epochs": 4}, n_bootstrap=0)
    assert abs(value(model, "auroc") - 0.5) < 0.2


def test_regression_twin() -> None:
    model = sl.tl.fit_slide(bags_of(), "share", folds=2, params=QUICK, n_bootstrap=20)
    assert model.spec.task == "regression"
    assert value(model, "pearson") >= 0.8
    assert value(model, "r2") > 0.5
    assert -0.2 < value(model, "r2", "floor") < 0
    predicted = sl.tl.predict_slide(bags_of(10, seed=4), model)
    assert np.corrcoef(predicted["share"], cohort(10, 4)[2]["share"])[0, 1] > 0.8


def test_survival_twin() -> None:
    model = sl.tl.fit_slide(bags_of(), "time", event="event", folds=2, params=QUICK | {"batch_size": 6}, n_bootstrap=20)
    assert model.spec.task == "survival"
    assert value(model, "c_index") >= 0.7
    assert value(model, "c_index", "floor") == 0.5
    predictions = model.evaluation.predictions
    assert {"time", "event", "prediction"} <= set(predictions)
    assert "truth" not in predictions
    risk = sl.tl.predict_slide(bags_of(10, seed=4), model)["time_log_risk"]
    assert np.corrcoef(risk, cohort(10, 4)[2]["share"])[0, 1] > 0.7


@pytest.mark.parametrize(("target", "values", "metric", "expected", "of_any"), [
    # Every fold's training mean is the other site's value: errors of 10 about a mean of 5.
    ("number", [0.0] * 6 + [10.0] * 6, "r2", -3.0, ("pearson", 0.0)),
    # Training shares of b are 2/3 and 1/3 where those held out are 1/3 and 2/3.
    ("kind", list("aaaabbbbbbaa"), "brier", 1 / 3, ("auroc", 0.5)),
])  # fmt: skip
def test_floor_knows_only_training_labels(
    target: str, values: list[Any], metric: str, expected: float, of_any: tuple[str, float]
) -> None:
    features, _, labels = cohort(12, seed=2)
    labels = labels.assign(patient=labels["slide"], site=["x"] * 6 + ["y"] * 6, **{target: values})
    bags = sl.io.read_bags(features, labels=labels)
    task = {"number": "regression", "kind": "classification"}[target]
    options = {"folds": "site", "aggregator": "mean", "params": FAST, "n_bootstrap": 0}
    model = sl.tl.fit_slide(bags, target, task=task, **options)
    assert value(model, metric, "floor") == pytest.approx(expected)
    assert value(model, of_any[0], "floor") == of_any[1]


# -- how it is found --------------------------------------------------------------------------------------------------
def test_every_slide_is_held_out_once_and_no_patient_is_split(graded: sl.models.SlideModel) -> None:
    for _, part in graded.evaluation.predictions.groupby("method"):
        assert sorted(part["slide"]) == sorted(cohort()[0])
        assert (part.groupby("patient")["fold"].nunique() == 1).all()


def test_same_seed_same_model() -> None:
    first, again, other = (
        sl.tl.fit_slide(bags_of(16), "grade", folds=2, params=FAST, n_bootstrap=0, seed=seed) for seed in (0, 0, 1)
    )
    assert first.fingerprint == again.fingerprint != other.fingerprint
    pd.testing.assert_frame_equal(first.evaluation.predictions, again.evaluation.predictions)


def test_the_order_of_the_slides_is_not_part_of_a_fit() -> None:
    bags, order = bags_of(24), np.random.default_rng(0).permutation(18)
    params = FAST | {"max_tiles": 20}

    def fitted(main: sl.io.Bags, test: sl.io.Bags) -> sl.models.SlideModel:
        return sl.tl.fit_slide(main, "grade", folds=2, test=test, params=params, n_bootstrap=10, seed=0)

    model = fitted(bags.take(np.arange(18)), bags.take(np.arange(18, 24)))
    again = fitted(bags.take(order), bags.take(np.arange(18, 24)[::-1]))
    assert again.fingerprint == model.fingerprint
    assert again.provenance == model.provenance
    for a, b in ((model.evaluation, again.evaluation), (model.test_evaluation, again.test_evaluation)):
        assert a is not None
        assert b is not None
        pd.testing.assert_frame_equal(a.table, b.table)
        pd.testing.assert_frame_equal(a.predictions, b.predictions)


def test_held_out_labels_and_features_do_not_reach_the_fold() -> None:
    features, _, labels = cohort(16)
    labels = labels.assign(site=np.where(labels["patient"].isin(labels["patient"].unique()[:7]), "x", "y"))
    changed = {n: x * (5 if s == "x" else 1) for (n, x), s in zip(features.items(), labels["site"], strict=True)}
    spoilt = labels.assign(share=labels["share"].where(labels["site"] == "y", 99.0))
    nets = []
    for given, table in ((features, labels), (changed, spoilt)):
        bags = sl.io.read_bags(given, labels=table)
        model = sl.tl.fit_slide(bags, "share", folds="site", params=FAST, n_bootstrap=0)
        assert model.evaluation.facts["folds"] == ["x", "y"]
        nets.append(model.members["share"][0])
    # The network of the fold that holds out x never saw what was changed.
    state = [net.state_dict() for net in nets]
    assert all((state[0][k] == state[1][k]).all() for k in state[0])


def test_other_bags_are_split_like_the_first() -> None:
    bags = bags_of(40)
    # The same slides whose patients are called otherwise, two by two.
    others = bags.with_labels(labels_for(bags, patient=[f"q{i // 2}" for i in range(40)], share=0.0))
    params = FAST | {"epochs": 4, "patience": 1}
    model = sl.tl.fit_slide(bags, "share", compare={"other": others}, folds=2, params=params, n_bootstrap=0)
    first, second = (part.reset_index(drop=True) for _, part in model.evaluation.predictions.groupby("method"))
    pd.testing.assert_frame_equal(first.drop(columns="method"), second.drop(columns="method"))


@pytest.mark.parametrize(("n", "target", "event"), [(20, "share", None), (15, "three", None), (8, "grade", None),
                                                    (12, "time", "event")])  # fmt: skip
def test_few_patients_can_be_fitted(n: int, target: str, event: str | None) -> None:
    features, _, labels = cohort(n, seed=6)
    labels = labels.assign(patient=labels["slide"], three=[("a", "b", "c")[i % 3] for i in range(n)])
    bags = sl.io.read_bags(features, labels=labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sl.SealstWarning)
        model = sl.tl.fit_slide(bags, target, event=event, aggregator="mean", params=FAST, n_bootstrap=20)
    assert len(model.evaluation.predictions) == n


@pytest.mark.parametrize(
    "words",
    [("1:DECEASED", "0:LIVING"), ("1:Recurred/Progressed", "0:DiseaseFree"), ("Dead", "Alive "), ("yes", "no")],
)
def test_events_in_words(words: tuple[str, str]) -> None:
    bags = bags_of(12)
    seen = bags.obs["event"].to_numpy().copy()
    texts = pd.Series([words[0] if one else words[1] for one in seen], index=bags.obs.index).where(np.arange(12) != 3)
    for column in (texts, texts.astype("category")):
        found = labels_of(bags.obs.assign(told=column), "time", "survival", event="told")
        assert found.known.tolist() == [i != 3 for i in range(12)]
        np.testing.assert_array_equal(found.values[found.known, 1], seen[found.known])
    with pytest.raises(sl.DataError, match="Column 'told' must hold numbers"):
        labels_of(bags.obs.assign(told=texts.replace(words[1], "lost")), "time", "survival", event="told")


def test_blank_slides_are_named_together() -> None:
    features, _, labels = cohort(12, seed=1)
    blank = {name: np.full((3, DIM), np.nan, np.float32) if name in ("s02", "s05", "s09") else x
             for name, x in features.items()}  # fmt: skip
    bags = sl.io.read_bags(blank, labels=labels)
    with pytest.raises(sl.DataError, match=r"Slides 's02', 's05', 's09': no tile has a finite .*`bags\.take\(rows\)`"):
        sl.tl.fit_slide(bags, "share", aggregator="mean", folds=2, params=FAST, n_bootstrap=0)


def test_a_blank_slide_without_label_stops_nobody(tmp_path) -> None:
    features, _, labels = cohort(12, seed=1)
    blank = {"s00": np.full((3, DIM), np.nan, dtype=np.float32)} | {n: x for n, x in features.items() if n != "s00"}
    labels["share"] = labels["share"].where(labels["slide"] != "s00")
    bags = sl.io.read_bags(blank, labels=labels)
    model = sl.tl.fit_slide(bags, "share", aggregator="mean", folds=2, params=FAST, n_bootstrap=0)
    new = sl.io.read_bags({"n0": blank["s00"], "n1": features["s01"]})
    with pytest.warns(sl.SealstWarning, match=r"Slide\(s\) 'n0' have no tile with an embedding 'features'"):
        found = sl.tl.predict_slide(new, model)
    assert list(found.index) == ["n0", "n1"]
    assert found["share"].isna().tolist() == [True, False]
    with pytest.raises(sl.DataError, match="nothing to predict from"):
        sl.tl.predict_slide(new.take([0]), model)
    with pytest.raises(sl.DataError, match="'s00': no tile has a finite embedding"):
        sl.tl.fit_slide(bags.with_labels(labels_for(bags, share=np.arange(12.0))), "share", folds=2, params=FAST)


def test_missing_labels_and_several_targets(caplog: pytest.LogCaptureFixture) -> None:
    bags = bags_of(16)
    labels = pd.DataFrame({"b": [0.0, 1.0] * 7 + [np.nan] * 2}, index=bags.obs.index)
    with caplog.at_level("INFO", logger="sealst"):
        model = sl.tl.fit_slide(bags.with_labels(labels), ["grade", "b"], folds=2, params=FAST, n_bootstrap=0)
    assert "b: 2 of 16 slides have no label" in caplog.text
    assert "b: classification, as the column holds 2 distinct numbers" in caplog.text
    assert model.spec.classes == {"grade": ("low", "high"), "b": ("0", "1")}
    counts = model.evaluation.predictions.groupby("target").size()
    assert (counts["grade"], counts["b"]) == (16, 14)
    predicted = sl.tl.predict_slide(bags_of(4, seed=3), model)
    assert list(predicted) == ["patient", "grade", "grade_p_low", "grade_p_high", "b", "b_p_0", "b_p_1"]


def test_test_slides_are_scored_by_the_averaged_networks() -> None:
    features, _, labels = cohort(8, seed=5)
    renamed = labels.assign(slide="t" + labels["slide"], patient="t" + labels["patient"])
    test = sl.io.read_bags({f"t{name}": x for name, x in features.items()}, labels=renamed)
    model = sl.tl.fit_slide(bags_of(16), "grade", folds=2, test=test, params=FAST, n_bootstrap=0)
    found = model.test_evaluation
    assert found is not None
    assert sorted(found.predictions["slide"]) == sorted(test.obs.index)
    assert not set(model.evaluation.predictions["slide"]) & set(test.obs.index)
    direct = sl.tl.predict_slide(test, model)["grade_p_high"]
    np.testing.assert_allclose(found.predictions.set_index("slide")["p_high"].loc[direct.index], direct)
    with pytest.raises(sl.LeakError, match="have slides in `bags` and in `test`"):
        sl.tl.fit_slide(bags_of(16), "grade", test=test.with_labels(labels_for(test, patient="p0.0")), params=FAST)


def labels_for(bags: sl.io.Bags, **columns: Any) -> pd.DataFrame:
    return pd.DataFrame(columns, index=bags.obs.index)


def test_test_slides_are_never_subsampled(monkeypatch: pytest.MonkeyPatch) -> None:
    from sealst.models._slides.model import SlideNet

    seen: list[int] = []
    predict = SlideNet.predict

    def spy(self: SlideNet, features: np.ndarray, xy: Any) -> Any:
        seen.append(len(features))
        return predict(self, features, xy)

    monkeypatch.setattr(SlideNet, "predict", spy)
    sl.tl.fit_slide(bags_of(12), "grade", folds=2, params=FAST | {"max_tiles": 5}, aggregator="mean", n_bootstrap=0)
    assert set(seen) == {TILES}


# -- predictions ------------------------------------------------------------------------------------------------------
def test_predict_writes_slots(graded: sl.models.SlideModel) -> None:
    x = cohort(2, seed=7)[0]["s01"].copy()
    x[3] = np.nan
    table = table_of("new", x)
    before = set(table.obs)
    result = sl.tl.predict_slide(table, graded, copy=True)
    assert set(table.obs) == before
    assert isinstance(result, AnnData)
    attention = result.obs["seal_attention"]
    assert attention.dtype == np.float64
    assert list(np.flatnonzero(attention.isna())) == [3]
    assert attention.sum() == pytest.approx(1)
    entry = result.uns["sealst"]["predict_slide"]["seal_attention"]
    assert (entry["target"], entry["model"]) == ("grade", graded.fingerprint)
    assert list(entry["predictions"]["output"]) == ["grade", "grade_p_low", "grade_p_high"]


def test_regions_one_after_the_other(graded: sl.models.SlideModel) -> None:
    import anndata

    slides = cohort(3, seed=7)[0]
    table = anndata.concat([table_of(name, x) for name, x in slides.items()], index_unique="-")
    table.uns["sealst"] = {"embed": {"X_seal": {"model": "a" * 16}}}
    whole = sl.tl.predict_slide(table, graded, copy=True)
    assert isinstance(whole, AnnData)
    for name in ("s00", "s02", "s01", "s02"):
        sl.tl.predict_slide(table, graded, region=name)
    pd.testing.assert_series_equal(table.obs["seal_attention"], whole.obs["seal_attention"])
    key = ("predict_slide", "seal_attention")
    found, expected = (t.uns["sealst"][key[0]][key[1]]["predictions"] for t in (table, whole))
    order = ["slide", "output"]
    pd.testing.assert_frame_equal(*(t.sort_values(order).reset_index(drop=True) for t in (found, expected)))
    # What another model said does not stay beside it.
    table.uns["sealst"][key[0]][key[1]]["model"] = "other"
    sl.tl.predict_slide(table, graded, region="s01")
    assert table.obs["seal_attention"].notna().groupby(table.obs["section"]).all().tolist() == [False, True, False]
    assert set(table.uns["sealst"][key[0]][key[1]]["predictions"]["slide"]) == {"s01"}


def test_predictions_can_be_stored(graded: sl.models.SlideModel, tmp_path) -> None:
    import anndata

    table = table_of("new", cohort(2, seed=7)[0]["s01"])
    sl.tl.predict_slide(table, graded)
    table.write_h5ad(tmp_path / "t.h5ad")
    read = anndata.read_h5ad(tmp_path / "t.h5ad").uns["sealst"]["predict_slide"]["seal_attention"]
    assert read["predictions"]["value"].iloc[0] in ("low", "high")


def test_embeddings_of_another_model_are_refused(graded: sl.models.SlideModel) -> None:
    x = cohort(2, seed=7)[0]["s01"]
    other = table_of("new", x, model="b" * 16)
    with pytest.raises(sl.DataError, match="was made by model 'bbbb.*, but the slide model was fitted on"):
        sl.tl.predict_slide(other, graded)
    assert "seal_attention" not in other.obs
    with pytest.raises(sl.DataError, match="were made by model 'bbbb"):
        sl.tl.predict_slide(sl.io.read_bags([other]), graded)
    del other.obsm["X_seal"]
    with pytest.raises(sl.MissingKeyError, match="'X_seal' not found in `.obsm`"):
        sl.tl.predict_slide(other, graded)


def test_files_may_name_the_embedding_otherwise(graded: sl.models.SlideModel, tmp_path) -> None:
    tables = {name: table_of(name, x) for name, x in cohort(3, 8)[0].items()}
    bags = sl.io.read_bags(tables)
    sl.io.write_trident(bags, tmp_path, name="seal", crop_px=224, level0_px=100, mpp=0.5)
    patients = bags.obs.reset_index()
    files = sl.io.read_bags(tmp_path, labels=patients)
    pd.testing.assert_frame_equal(*(sl.tl.predict_slide(b, graded) for b in (bags, files)))
    unknown = sl.io.read_bags(dict.fromkeys(tables, np.zeros((3, DIM))), labels=patients)
    with pytest.raises(sl.MissingKeyError, match="'X_seal' not found in the bags' embeddings"):
        sl.tl.predict_slide(unknown, graded)


def test_embeddings_of_one_length() -> None:
    features, _, labels = cohort(12)
    mixed = features | {"s03": np.zeros((5, DIM + 1), dtype=np.float32)}
    with pytest.raises(sl.DataError, match=f"'s03' has embeddings of {DIM + 1} numbers"):
        sl.tl.fit_slide(sl.io.read_bags(mixed, labels=labels), "grade", folds=2, params=FAST)


def test_patients_of_the_fit_are_pointed_out(graded: sl.models.SlideModel) -> None:
    features, _, labels = cohort()
    table = table_of("s00", features["s00"])
    table.obs["patient"] = labels["patient"].iloc[0]
    with pytest.warns(sl.SealstWarning, match="was fitted on patient"):
        sl.tl.predict_slide(table, graded)


def test_a_fitted_model_survives_the_disk(graded: sl.models.SlideModel, tmp_path) -> None:
    loaded = sl.models.load_slide(graded.save(tmp_path / "model"))
    pd.testing.assert_frame_equal(loaded.evaluation.table, graded.evaluation.table)
    pd.testing.assert_frame_equal(loaded.evaluation.predictions, graded.evaluation.predictions)
    assert loaded.evaluation.facts == graded.evaluation.facts
    tables = [table_of(name, x) for name, x in cohort(3, 8)[0].items()]
    pd.testing.assert_frame_equal(*(sl.tl.predict_slide(sl.io.read_bags(tables), m) for m in (loaded, graded)))
    assert not list((tmp_path / "model").glob("*.pkl"))


@pytest.mark.parametrize("changed", [
    {"target": np.array(["grade", "permuted"])}, {"seed": np.int64(3)}, {"n_bootstrap": np.int32(2)},
    {"folds": np.int64(2)}, {"params": {**FAST, "hidden": np.int64(8), "dropout": np.float32(0.1)}},
    {"params": sl.tl.SlideParams(epochs=np.int64(1), hidden=np.int64(8), lr=np.float32(1e-3))},
], ids=str)  # fmt: skip
def test_numbers_of_numpy_survive_the_disk(changed: dict[str, Any], tmp_path) -> None:
    given: dict[str, Any] = {"target": "grade", "folds": 2, "params": FAST, "n_bootstrap": 0, "aggregator": "mean"}
    model = sl.tl.fit_slide(bags_of(12), **(given | changed))
    assert sl.models.load_slide(model.save(tmp_path / "model")).fingerprint == model.fingerprint


# -- errors -----------------------------------------------------------------------------------------------------------
def with_column(values: Any) -> sl.io.Bags:
    bags = bags_of(12)
    return bags.with_labels(pd.DataFrame({"y": values}, index=bags.obs.index))


ERRORS: list[tuple[Callable[[], Any], str]] = [
    (lambda: sl.tl.fit_slide(bags_of(12), "nothing"), "'nothing' not found in `bags.obs`"),
    (lambda: sl.tl.fit_slide(bags_of(12), []), "`target` is empty"),
    (lambda: sl.tl.fit_slide(bags_of(12), ["grade", "share"]), "ask for several tasks"),
    (lambda: sl.tl.fit_slide(bags_of(12), "time", task="survival"), "Survival needs a time as `target` and a column"),
    (lambda: sl.tl.fit_slide(bags_of(12), "grade", aggregator="best"), "`aggregator` must be one of"),
    (lambda: sl.tl.fit_slide(bags_of(12), "grade", folds=50), "between 2 and the number of patients"),
    (lambda: sl.tl.fit_slide(bags_of(12), "grade", folds="site"), "'site' not found in `bags.obs`"),
    (lambda: sl.tl.fit_slide(bags_of(12), "grade", params={"epoch": 3}), "`params` has no field 'epoch'"),
    (lambda: sl.tl.fit_slide(bags_of(12), "grade", params={"dropout": 1}), "must be less than 1, found 1"),
    (lambda: sl.tl.fit_slide(bags_of(12), "grade", compare=["X_frozen"]), "'X_frozen' not found in the bags'"),
    (lambda: sl.tl.fit_slide(bags_of(12), "grade", compare={"floor": bags_of(12)}), "stands for something else"),
    (lambda: sl.tl.fit_slide(bags_of(12), "grade", compare={"other": bags_of(10)}), "lacks slide"),
    (lambda: sl.tl.fit_slide(bags_of(12), "grade", n_bootstrap=-1), "`n_bootstrap` must be a whole number, 0 or more"),
    (lambda: sl.tl.fit_slide(bags_of(12), "grade", n_bootstrap=1.5), "`n_bootstrap` must be a whole number"),
    (lambda: sl.tl.fit_slide(bags_of(12), "grade", seed=1.5), "`seed` must be a whole number"),
    (lambda: sl.tl.fit_slide(bags_of(12), "grade", params={"hidden": 8.0}), "`params.hidden` must be a whole number"),
    (lambda: sl.tl.fit_slide(bags_of(12), "grade", params={"epochs": 2.5}), "`params.epochs` must be a whole number"),
    (
        lambda: sl.tl.fit_slide(bags_of(12), "grade", params={"batch_size": 0}),
        "`params.batch_size` must be a positive number",
    ),
    (
        lambda: sl.tl.fit_slide(bags_of(12), "time", event="event", folds=2, params=FAST | {"batch_size": 1}),
        r"a step would have 1 of \d+ training slides. Set `params.batch_size` to 2",
    ),
    (lambda: sl.tl.fit_slide(with_column(["a"] * 12), "y"), "holds 1 class"),
    (lambda: sl.tl.fit_slide(with_column(["a"] + ["b"] * 11), "y"), r"'a' occur\(s\) in 1 patient"),
    (lambda: sl.tl.fit_slide(with_column([3.0] * 12), "y", task="regression"), "nothing to fit"),
    (lambda: sl.tl.fit_slide(with_column(["x"] * 12), "y", task="regression"), "must hold numbers"),
    (lambda: sl.tl.fit_slide(with_column([-1.0] * 12), "y", event="event"), "must be positive"),
    (
        lambda: sl.tl.fit_slide(with_column([5.0, 0.0] + [3.0] * 10), "y", event="event"),
        r"must be positive, found 0 \(slide\(s\) 's01'\)\. Leave these slides' times empty",
    ),
    (lambda: sl.tl.fit_slide(bags_of(12), "time", event="share"), "must hold 1"),
]


@pytest.mark.parametrize(("call", "message"), ERRORS, ids=[message for _, message in ERRORS])
def test_errors(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(sl.SealstError, match=message):
        call()


def test_types_and_patients() -> None:
    with pytest.raises(TypeError, match=r"sl.io.read_bags"):
        sl.tl.fit_slide({"s1": np.zeros((3, 2))}, "y")  # type: ignore[arg-type]
    bags = bags_of(12)
    bags.obs.loc["s03", "patient"] = None
    with pytest.raises(sl.DataError, match=r"'s03' have no patient"):
        sl.tl.fit_slide(bags, "grade", params=FAST)


def test_a_loss_that_is_no_number_stops() -> None:
    with pytest.raises(sl.DataError, match="Lower `params.lr`"):
        sl.tl.fit_slide(bags_of(12), "share", folds=2, params=FAST | {"lr": 1e30, "epochs": 5}, n_bootstrap=0)
