"""`sl.tl.evaluate(train_fractions=)`: what a model gives that learned from less."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd

import sealst as sl
from sealst._evaluation import curve_lines, steps, unit_of
from sealst._section import parts_of
from sealst.tl._evaluate.cohorts import BenchCohort, SectionCohort
from sealst.tl._evaluate.curve import Fractions, fractions_of

RECIPE = {
    "encoder": "vit_tiny_patch16_224",
    "pretrained": False,
    "params": {"epochs": 1, "batch_size": 16, "views": 2},
    "gene_encoder": {"hidden": (16,)},
    "n_genes": 8,
}
GENES = {"mine": ["EPCAM", "VIM"]}


@pytest.fixture
def cohort(ready):
    return [ready(section=s, patient=f"p{i}", seed=i) for i, s in enumerate("abcd")]


@pytest.fixture
def encoder():
    return sl.models.build_encoder("vit_tiny_patch16_224", pretrained=False)


def evaluated(sections, model, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sl.SealstWarning)
        return sl.tl.evaluate(sections, model, **({"genes": GENES} | options))


def planned(sections, shares, n_draws=3, seed=0):
    """Folds that leave one patient out, and their parts."""
    parts = parts_of(sections)
    spots = {part.section: part.obs_names for part in parts}
    patients = {part.section: str(part.table.obs["patient"].iloc[0]) for part in parts}
    folds = []
    for patient in sorted(set(patients.values())):
        held = {name: spots[name] for name in spots if patients[name] == patient}
        train = {name: spots[name] for name in spots if name not in held}
        folds.append(sl.pp.Split(train, held, f"patient-{patient}"))
    plan = Fractions(shares, n_draws, seed).plan(SectionCohort([sections], "table"), folds)
    return {fold.name: fold for fold in folds}, plan


def spots_of(part):
    return {(name, spot) for name, spots in part.fold.train.items() for spot in spots}


# -- what is drawn -----------------------------------------------------------------------------------------------------
def test_patients_leave_first_then_sections_then_spots(toy_section):
    sections = [toy_section(section=f"s{i}", patient=f"p{i // 2}", seed=i) for i in range(8)]
    folds, plan = planned(sections, [1 / 12, 1 / 6, 1 / 3, 2 / 3])
    for name, parts in plan.items():
        for part in parts:
            assert part.fold.test is folds[name].test
            found = {s: len(spots) for s, spots in part.fold.train.items()}
            patients = {int(s[1]) // 2 for s in found}
            whole = {2 / 3: (2, 4), 1 / 3: (1, 2), 1 / 6: (1, 1), 1 / 12: (1, 1)}[part.fraction]
            assert (len(patients), len(found)) == whole
            assert set(found.values()) == ({18} if part.fraction == 1 / 12 else {36})
        draws = pd.DataFrame([(part.fraction, part.draw, part) for part in parts], columns=["share", "draw", "part"])
        # Parts of one size differ, and the smaller is in the larger.
        for _, some in draws.groupby("share"):
            assert len({frozenset(spots_of(part)) for part in some["part"]}) == len(some) == 3
        for _, some in draws.groupby("draw"):
            spots = [spots_of(part) for part in some.sort_values("share")["part"]]
            assert all(smaller < larger for smaller, larger in zip(spots, spots[1:], strict=False))


def test_spots_leave_from_one_side_of_the_section(toy_section):
    sections = [toy_section(section=s, patient=f"p{i}", seed=i) for i, s in enumerate("ab")]
    _, plan = planned(sections, [0.5])
    sides = []
    for part in plan["patient-p1"]:
        table = sections[0].tables["table"]
        xy = table.obsm["spatial"][np.isin(table.obs_names, part.fold.train["a"])]
        others = table.obsm["spatial"][~np.isin(table.obs_names, part.fold.train["a"])]
        step = xy.mean(0) - others.mean(0)
        assert (xy @ step).min() > (others @ step).max() - 1e-6 or np.linalg.norm(step) > 200
        sides.append(step / np.linalg.norm(step))
    assert min(sides[0] @ sides[1], sides[1] @ sides[2], sides[0] @ sides[2]) < 0


def test_what_is_drawn_depends_on_the_seed_alone(toy_section):
    cohort = [toy_section(section=s, patient=f"p{i}", seed=i) for i, s in enumerate("abcd")]
    _, plan = planned(cohort, [1 / 3])
    _, again = planned(cohort[::-1], [1 / 3])
    others = [planned(cohort, [1 / 3], seed=seed)[1] for seed in range(1, 9)]
    for name, parts in plan.items():
        assert [spots_of(p) for p in parts] == [spots_of(p) for p in again[name]]
    assert any(spots_of(o["patient-p0"][0]) != spots_of(plan["patient-p0"][0]) for o in others)


def test_no_part_is_drawn_twice(toy_section):
    sections = [toy_section(section=s, patient=f"p{i}", seed=i) for i, s in enumerate("abc")]
    _, plan = planned(sections, [0.5], n_draws=5)
    assert [len(parts) for parts in plan.values()] == [2, 2, 2]


# -- what is scored ----------------------------------------------------------------------------------------------------
def test_a_frozen_encoder_learns_from_each_part_what_it_learns_from_it_alone(cohort, encoder):
    plain = evaluated(cohort, encoder)
    found = evaluated(cohort, encoder, train_fractions=[1 / 3, 1], n_draws=2)
    pd.testing.assert_frame_equal(found.table, plain.table)
    assert plain.curve.empty
    curve = found.curve
    assert list(curve.columns) == [
        *("fraction", "n_patients", "n_sections", "n_spots", "fold", "draw", "seed"),
        *("method", "metric", "genes", "value"),
    ]
    assert set(curve["fraction"]) == {1 / 3, 1.0}
    whole = curve[curve["fraction"] == 1]
    assert set(whole["n_patients"]) == {3} == set(whole["n_sections"])
    assert set(whole["n_spots"]) == {108}
    keys = ["fold", "method", "metric", "genes"]
    single = found.table[found.table["section"] != ""].set_index(keys)["value"]
    pd.testing.assert_series_equal(
        whole[whole["metric"] == "pearson"].set_index(keys)["value"].sort_index(),
        single[single.index.get_level_values("metric") == "pearson"].sort_index(),
    )
    # A part by itself.
    _, plan = planned(cohort, [1 / 3], n_draws=2, seed=sl.settings.seed)
    part = plan["patient-p0"][1]
    alone = evaluated(cohort, encoder, folds=[part.fold]).table.query("metric == 'pearson' and section != ''")
    rows = curve.query("metric == 'pearson' and fold == 'patient-p0' and draw == 1")
    assert set(rows["n_spots"]) == {36}
    pd.testing.assert_series_equal(
        rows.set_index("method")["value"].sort_index(), alone.set_index("method")["value"].sort_index()
    )
    assert found.facts["train_fractions"] == [1 / 3, 1.0]
    assert found.facts["n_draws"] == 2
    assert "train_fractions" not in plain.facts


def test_every_part_trains_its_own_model_and_all_of_it_is_trained_once(cohort, monkeypatch):
    trained = []
    plain = sl.tl.finetune

    def watched(sections, **options):
        made = plain(sections, **options)
        panel = options.get("panel")
        trained.append((made.provenance, None if panel is None else (panel.genes, panel.mean, panel.sections)))
        return made

    monkeypatch.setattr("sealst.tl._evaluate.candidates.finetune", watched)
    found = evaluated(cohort[:3], RECIPE, train_fractions=[0.25, 0.5], n_draws=1)
    # Three folds: all, one of two patients, half of its only section.
    assert [made["n_spots"] for made, _ in trained] == [72, 18, 36] * 3
    for (first, _), *parts in (trained[i : i + 3] for i in (0, 3, 6)):
        for made, (genes, mean, sections) in parts:
            assert set(made["sections"]) < set(first["sections"])
            assert made["patients"] == [f"p{'abc'.index(made['sections'][0])}"]
            assert list(sections) == made["sections"]
            assert len(genes) == 8
            assert np.isfinite(mean).all()
    curve = found.curve.query("metric == 'pearson'")
    assert {"frozen + ridge", "adapted + ridge", "seal head"} <= set(curve["method"])
    counts = curve.groupby("fraction")[["n_patients", "n_sections", "n_spots"]].agg(["min", "max"])
    assert counts.to_numpy().tolist() == [[1, 1, 1, 1, 18, 18], [1, 1, 1, 1, 36, 36], [2, 2, 2, 2, 72, 72]]
    assert np.isfinite(curve["value"]).all()
    without = evaluated(cohort[:3], RECIPE)
    pd.testing.assert_frame_equal(found.table, without.table)


def test_tokens_of_whole_sections_are_shared(cohort, monkeypatch):
    seen: list[int] = []
    plain = sl.models.SealModel.trunk_tokens
    monkeypatch.setattr(sl.models.SealModel, "trunk_tokens", lambda m, c: seen.append(len(c)) or plain(m, c))
    # Of fewer spots fewer blocks are adapted, unless that is stated.
    stated = RECIPE | {"adapter": {"kind": "lora", "n_blocks": 1}}
    evaluated(cohort[:3], stated, train_fractions=[0.25, 0.5], n_draws=1)
    assert sum(seen) == 8 * 3 * 36


def test_a_fraction_that_leaves_the_same_part_is_not_trained_again(cohort, encoder, caplog):
    found = evaluated(cohort[:3], encoder, train_fractions=[0.5, 0.6], n_draws=1)
    wide = found.curve.pivot_table(index=["fold", "method", "metric", "genes"], columns="fraction", values="value")
    pd.testing.assert_series_equal(wide[0.5], wide[0.6], check_names=False)
    assert caplog.text.count("the same spots as of a smaller fraction") == 3


def test_patients_of_one_spatialdata_can_leave_it(cohort, encoder, toy_section):
    pair = [toy_section(section=s, patient=f"p{i}", seed=i) for i, s in enumerate("ab")]
    both = sd.concatenate(pair, concatenate_tables=True)
    sl.pp.pair_crops(both, crop_um=64, crop_px=32)
    sl.pp.normalize(both)
    found = evaluated([both], RECIPE, test=[cohort[2]], train_fractions=[0.5])
    parts = found.curve.query("fraction < 1")
    assert set(parts["n_patients"]) == {1} == set(parts["n_sections"])
    assert set(parts["n_spots"]) == {36}
    # Of two patients only two parts can be drawn.
    assert set(parts["draw"]) == {0, 1}


def test_collections_stay_closed(cohort, encoder, tmp_path):
    stored = sl.io.Collection(cohort[:3]).write(tmp_path / "stores")
    found = evaluated(stored, RECIPE, train_fractions=[0.25], n_draws=1)
    assert set(found.curve.query("fraction < 1")["n_spots"]) == {18}


# -- what is refused ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([0, 0.5], "`train_fractions` must be a positive number, found 0"),
        ([0.5, 1.5], "`train_fractions` holds 1.5; name shares of the training side above 0 and up to 1"),
        ([1], "none below 1 to compare with"),
        ([], "`train_fractions` is empty; name shares"),
        ("half", "`train_fractions` must be a positive number, found 'half'"),
    ],
)
def test_what_is_no_fraction_is_refused(given, text):
    with pytest.raises(sl.DataError, match=text):
        fractions_of(given, 3, 0)


def test_all_of_the_training_side_is_always_learned_from():
    assert fractions_of([1, 0.5, 0.25], 2, 0) == fractions_of([0.25, 0.5], 2, 0) == Fractions([0.25, 0.5], 2, 0)
    assert fractions_of(None, 3, 0).shares == ()


def test_too_few_spots_a_trained_model_and_nothing_to_stop_by_are_refused(cohort, encoder, model):
    with pytest.raises(sl.DataError, match=r"0.1 of the 36 training spots of fold 'patient-p0' are 3; at least 16"):
        evaluated(cohort[:2], encoder, train_fractions=[0.1])
    with pytest.raises(sl.DataError, match="`n_draws`"):
        evaluated(cohort[:2], encoder, train_fractions=[0.5], n_draws=0)
    with pytest.raises(sl.DataError, match=r"the model is trained already. Pass the recipe"):
        evaluated(cohort[:2], model, test=cohort[3], train_fractions=[0.5])
    stopping = RECIPE | {"params": RECIPE["params"] | {"patience": 1}}
    with pytest.raises(sl.DataError, match=r"fold 'patient-p0, 0.5 of the training side, draw 0' has one training"):
        evaluated(cohort[:3], stopping, train_fractions=[0.5])


def test_files_without_patients_are_refused():
    with pytest.raises(sl.DataError, match="the files of HEST-bench do not name any. Read the samples of HEST-1k"):
        Fractions([0.5], 1, 0).plan(object.__new__(BenchCohort), [])


# -- what it says ------------------------------------------------------------------------------------------------------
def made_curve(values, *, method="adapted + ridge", n=(2, 4)) -> pd.DataFrame:
    """`values` by fold: of half of the patients (a draw each), and of all."""
    rows = []
    for fold, (parts, whole) in values.items():
        for draw, value in enumerate(parts):
            rows.append({"fraction": 0.5, "n_patients": n[0], "fold": fold, "draw": draw, "value": value})
        rows.append({"fraction": 1.0, "n_patients": n[1], "fold": fold, "draw": 0, "value": whole})
    facts = {"n_sections": 1, "n_spots": 100, "seed": 0, "method": method, "metric": "pearson", "genes": "hvg50"}
    return pd.DataFrame(rows).assign(**facts)


def test_steps_are_paired_by_fold():
    curve = made_curve({"a": ([0.1, 0.2], 0.2), "b": ([0.5, 0.7], 0.66), "c": ([0.3], 0.34)})
    (row,) = steps(curve).to_dict("records")
    gains = np.array([0.05, 0.06, 0.04])
    assert row["difference"] == pytest.approx(gains.mean())
    # 4.303: the t-distribution with two degrees of freedom.
    assert row["high"] - row["difference"] == pytest.approx(4.303 * gains.std(ddof=1) / np.sqrt(3), abs=1e-4)
    assert row["n_folds"] == 3
    assert unit_of(curve) == "n_patients"
    (line,) = curve_lines(curve)
    assert line == (
        "learning curve, adapted + ridge, hvg50: from half to all of the training patients (2 -> 4): "
        "r 0.350 -> 0.400, +0.050 ± 0.025 over 3 folds; still rising"
    )


def test_noise_is_called_noise():
    noisy = made_curve({"a": ([0.1], 0.2), "b": ([0.5], 0.45), "c": ([0.3], 0.31)})
    assert curve_lines(noisy)[0].endswith("no change that these folds tell from noise")
    worse = made_curve({"a": ([0.2], 0.1), "b": ([0.5], 0.41), "c": ([0.3], 0.19)})
    assert curve_lines(worse)[0].endswith("over 3 folds; falling")
    alone = made_curve({"a": ([0.1], 0.2)}, n=(1, 1))
    assert curve_lines(alone) == [
        "learning curve, adapted + ridge, hvg50: from half to all of the training spots (100 -> 100): "
        "r 0.100 -> 0.200; one fold, so whether that is more than noise is not known"
    ]


def test_an_evaluation_says_it_in_a_line(cohort, encoder):
    found = evaluated(cohort, encoder, train_fractions=[1 / 3, 2 / 3], n_draws=1)
    first, line = repr(found).splitlines()
    assert first.startswith("Evaluation 'cv'")
    assert line.startswith(
        "learning curve, frozen + ridge, mine: from 66.7 % to all of the training patients (2 -> 3): r "
    )
    assert "<br>learning curve" in found._repr_html_()
    assert len(repr(evaluated(cohort, encoder)).splitlines()) == 1
