from __future__ import annotations

import warnings

import numpy as np
import pytest
import spatialdata as sd
from anndata import AnnData
from scipy.spatial.distance import cdist
from spatialdata.transformations import remove_transformation

import sealst as sl

MPP = 0.5
XY = np.array([[c, r] for r in range(20) for c in range(20)]) * 100.0 / MPP + 100


def section(name: str, patient: str = "A", *, xy: np.ndarray = XY):
    counts = np.ones((len(xy), 2), dtype=int)
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    return sl.io.from_arrays(
        image, counts, xy, genes=["VIM", "EPCAM"], mpp=MPP, spot_um=55, section=name, patient=patient, thumbnail=False
    )


@pytest.fixture
def cohort() -> list[sd.SpatialData]:
    """Patients A (2 sections), B, C."""
    small = XY[:30]
    return [section(n, p, xy=small) for n, p in (("a1", "A"), ("a2", "A"), ("b1", "B"), ("c1", "C"))]


def names(side: dict[str, np.ndarray]) -> list[str]:
    return [n for spots in side.values() for n in spots]


def all_names(sections: list[sd.SpatialData]) -> list[str]:
    return [n for s in sections for n in s.tables["table"].obs_names]


def check_cover(folds: list[sl.pp.Split], sections: list[sd.SpatialData]) -> None:
    assert sorted(n for f in folds for n in names(f.test)) == sorted(all_names(sections))
    for fold in folds:
        assert not set(names(fold.train)) & set(names(fold.test))


# --- patients ---------------------------------------------------------------------------------------------------------


def test_by_default_one_patient_is_left_out(cohort) -> None:
    folds = sl.pp.split(cohort)
    assert [f.name for f in folds] == ["patient-A", "patient-B", "patient-C"]
    assert folds[0].test_sections == ["a1", "a2"]
    assert folds[0].train_sections == ["b1", "c1"]
    assert list(folds[0].test["a2"]) == list(cohort[1].tables["table"].obs_names)
    check_cover(folds, cohort)
    assert sum(len(names(f.train)) + len(names(f.test)) for f in folds) == 3 * 120


def test_patients_can_be_pooled_into_folds(cohort) -> None:
    folds = sl.pp.split(cohort, n_folds=2)
    assert sorted(f.name for f in folds) == ["patient-A", "patient-B+C"]
    check_cover(folds, cohort)


def test_one_section_may_hold_several_patients(cohort) -> None:
    table = cohort[2].tables["table"]
    table.obs["patient"] = ["B"] * 10 + ["D"] * 20
    folds = {f.name: f for f in sl.pp.split(cohort)}
    assert list(folds["patient-D"].test["b1"]) == list(table.obs_names[10:])
    assert list(folds["patient-D"].train["b1"]) == list(table.obs_names[:10])
    check_cover(list(folds.values()), cohort)


def test_anndata_and_joint_tables_give_the_same_folds(cohort) -> None:
    tables = [s.tables["table"] for s in cohort]
    joint = sd.concatenate(cohort, concatenate_tables=True)
    reference = sl.pp.split(cohort)
    for given in (tables, [joint]):
        folds = sl.pp.split(given)
        assert [f.name for f in folds] == [f.name for f in reference]
        for one, other in zip(folds, reference, strict=True):
            assert {k: list(v) for k, v in one.test.items()} == {k: list(v) for k, v in other.test.items()}


def test_a_single_patient_is_refused_with_the_way_out(cohort) -> None:
    with pytest.raises(sl.DataError, match=r"at least 2 patients, found only 'A'.*by='section'.*by='block'"):
        sl.pp.split(cohort[:2])


def test_a_missing_patient_column_is_refused(cohort) -> None:
    del cohort[2].tables["table"].obs["patient"]
    for call in (
        lambda: sl.pp.split(cohort),
        lambda: sl.pp.split(cohort, by="section"),
        lambda: sl.pp.check_split(cohort[:2], cohort[2:]),
    ):
        with pytest.raises(
            sl.MissingKeyError, match=r"'patient' not found in `.obs` of section 'b1'.*table.obs\['pati"
        ):
            call()


def test_unknown_patients_are_refused(cohort) -> None:
    table = cohort[2].tables["table"]
    table.obs["patient"] = table.obs["patient"].astype(object).where(np.arange(30) > 3)
    with pytest.raises(sl.DataError, match="is empty for 4 spots of section 'b1'"):
        sl.pp.split(cohort)


def test_one_patient_in_two_spellings_is_one(cohort) -> None:
    for sdata, name in zip(cohort, (1, 1.0, " 1 "), strict=False):
        sdata.tables["table"].obs["patient"] = name
    with pytest.raises(sl.LeakError, match="'1'"):
        sl.pp.check_split(cohort[:1], cohort[1:2])
    with pytest.raises(sl.LeakError, match="'1'"):
        sl.pp.check_split(cohort[:1], cohort[2:3])


# --- sections ---------------------------------------------------------------------------------------------------------


def test_by_section_refuses_a_patient_on_both_sides(cohort) -> None:
    with pytest.raises(sl.LeakError, match=r"patient 'A' \(train: 'a2'; test: 'a1'\).*allow_shared_patients=True"):
        sl.pp.split(cohort, by="section")


def test_by_section_when_allowed_or_harmless(cohort) -> None:
    folds = sl.pp.split(cohort, by="section", allow_shared_patients=True)
    assert [f.name for f in folds] == ["section-a1", "section-a2", "section-b1", "section-c1"]
    check_cover(folds, cohort)
    assert len(sl.pp.split(cohort[1:], by="section")) == 3
    assert len(sl.pp.split(cohort, by="section", n_folds=2, allow_shared_patients=True)) == 2


def test_one_section_is_refused(cohort) -> None:
    with pytest.raises(sl.DataError, match="at least 2 sections, found only 'a1'"):
        sl.pp.split(cohort[:1], by="section")


# --- blocks -----------------------------------------------------------------------------------------------------------


def test_blocks_leave_a_buffer_around_test_spots() -> None:
    sections = [section("a1"), section("a2")]
    with pytest.warns(sl.SealstWarning, match="put every patient on both sides.*allow_shared_patients"):
        folds = sl.pp.split(sections, by="block", block_um=500, n_folds=4)
    assert [f.name for f in folds] == ["block-1", "block-2", "block-3", "block-4"]
    check_cover(folds, sections)
    sizes = [len(names(f.test)) for f in folds]
    assert max(sizes) - min(sizes) < 0.1 * 800
    for fold in folds:
        for one in sections:
            table = one.tables["table"]
            name = str(table.obs["section"].iloc[0])
            train, test = (table[side[name]].obsm["spatial"] * MPP for side in (fold.train, fold.test))
            distance = cdist(train, test).min(1)
            # Spots lie 100 µm apart: direct and diagonal neighbours (141 µm) of test spots are out, the next are in.
            assert distance.min() == pytest.approx(200)
            assert len(test) > 0


def test_without_buffer_every_spot_is_used() -> None:
    sections = [section("a1")]
    folds = sl.pp.split(sections, by="block", block_um=500, buffer_um=0, allow_shared_patients=True)
    assert len(folds) == 5
    for fold in folds:
        assert sorted(names(fold.train) + names(fold.test)) == sorted(all_names(sections))


def test_blocks_are_compact_squares_of_the_given_size() -> None:
    one = section("a1")
    folds = sl.pp.split([one], by="block", block_um=500, n_folds=3, buffer_um=0, allow_shared_patients=True)
    table = one.tables["table"]
    fold_of = {n: f.name for f in folds for n in names(f.test)}
    labels = np.array([fold_of[n] for n in table.obs_names]).reshape(20, 20)
    # Along a row of 20 spots the fold can change at most where one of up to 5 blocks of 5 spots ends.
    assert (labels[:, 1:] != labels[:, :-1]).sum(1).max() <= 4
    assert (labels[1:] != labels[:-1]).sum(0).max() <= 4


def test_block_folds_follow_the_seed() -> None:
    sections = [section("a1")]

    def folds(seed: int) -> list[list[str]]:
        found = sl.pp.split(sections, by="block", block_um=400, seed=seed, allow_shared_patients=True)
        return [sorted(names(f.test)) for f in found]

    assert folds(0) == folds(0)
    assert folds(0) != folds(1)


def test_blocks_without_a_scale_are_refused() -> None:
    one = section("a1")
    with pytest.raises(sl.ScaleError, match="section 'a1' is an AnnData, which has no scale.*Pass its SpatialData"):
        sl.pp.split([one.tables["table"]], by="block")
    remove_transformation(one.shapes["a1_spots"], "um")
    with pytest.raises(sl.ScaleError, match=r"shapes\['a1_spots'\]` has no coordinate system 'um'.*set_transformation"):
        sl.pp.split([one], by="block")


def test_impossible_blocks_are_refused() -> None:
    one = section("a1")
    with pytest.raises(sl.DataError, match=r"block\(s\) of 9000 µm, fewer than the 5 folds"):
        sl.pp.split([one], by="block", block_um=9000)
    with pytest.raises(sl.DataError, match="No training spot of fold 1 lies outside the buffer"):
        sl.pp.split([one], by="block", buffer_um=1e5)


def test_nothing_is_warned_about_when_shared_patients_are_accepted() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", sl.SealstWarning)
        sl.pp.split([section("a1")], by="block", allow_shared_patients=True)


# --- checking ---------------------------------------------------------------------------------------------------------


def test_check_split_names_patient_and_sections(cohort) -> None:
    with pytest.raises(sl.LeakError, match=r"patient 'A' \(train: 'a1'; test: 'a2'\).*`sl.pp.split\(sections\)`"):
        sl.pp.check_split([cohort[0], cohort[2]], [cohort[1], cohort[3]])


def test_check_split_passes_clean_sides(cohort) -> None:
    assert sl.pp.check_split(cohort[:2], cohort[2:]) is None
    assert sl.pp.check_split([s.tables["table"] for s in cohort[:2]], cohort[2:]) is None


def test_check_split_refuses_an_empty_side(cohort) -> None:
    with pytest.raises(sl.DataError, match="`test_sections` is empty"):
        sl.pp.check_split(cohort, [])


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"by": "spot"}, sl.MissingKeyError, "'spot' not found in `.obs` of section 'a1'.*a column of `.obs`"),
        ({"n_folds": 1}, sl.DataError, "`n_folds` must be a whole number, 2 or more, found 1"),
        ({"n_folds": 2.0}, sl.DataError, "`n_folds` must be a whole number, 2 or more, found 2.0"),
        ({"n_folds": 4}, sl.DataError, "`n_folds=4` is more than the 3 patients 'A', 'B', 'C'"),
        ({"by": "section", "n_folds": 5}, sl.DataError, "`n_folds=5` is more than the 4 sections 'a1'"),
        ({"by": "block", "block_um": 0}, sl.DataError, "`block_um` must be a positive number, found 0"),
        ({"by": "block", "buffer_um": -1}, sl.DataError, "`buffer_um` must be 0 or more, found -1"),
        ({"table_key": "cells"}, sl.MissingKeyError, "'cells' not found in `sdata.tables`; found: 'table'"),
    ],
)
def test_bad_arguments_are_refused(cohort, arguments, error, match) -> None:
    with pytest.raises(error, match=match):
        sl.pp.split(cohort, **arguments)


def test_bad_lists_are_refused(cohort) -> None:
    with pytest.raises(sl.DataError, match="`sections` is empty"):
        sl.pp.split([])
    with pytest.raises(TypeError, match=r"`sections` must be SpatialData or AnnData, or a list of them, found str"):
        sl.pp.split("a1")
    with pytest.raises(sl.DataError, match=r"Section name\(s\) 'a1' occur twice"):
        sl.pp.split([cohort[0], cohort[0]])
    with pytest.raises(sl.DataError, match=r"'table' has 1 spot\(s\)"):
        sl.pp.split([*cohort, section("d1", "D", xy=XY[:1])])


def test_duplicate_spot_names_are_refused(cohort) -> None:
    table = AnnData(np.ones((2, 1)), obs={"patient": ["A", "B"], "section": ["s", "s"]})
    table.obs_names = ["x", "x"]
    with pytest.raises(sl.DataError, match="Section 's' has duplicate `obs_names`"):
        sl.pp.split([table])


def test_repr_says_what_is_held_out(cohort) -> None:
    text = repr(sl.pp.split(cohort)[1])
    assert text == "Split('patient-B': train on 90 spots of 'a1', 'a2', 'c1', test on 30 spots of 'b1')"


def test_a_column_is_held_out_value_by_value() -> None:
    sections = [section("a1", "A"), section("b1", "B"), section("c1", "C")]
    for one, organ in zip(sections, ("breast", "breast", "lung"), strict=True):
        one.tables["table"].obs["organ"] = organ
    folds = sl.pp.split(sections, by="organ")
    assert [fold.name for fold in folds] == ["organ-breast", "organ-lung"]
    assert folds[1].train_sections == ["a1", "b1"]
    assert folds[1].test_sections == ["c1"]
    sections[2].tables["table"].obs["patient"] = "A"
    with pytest.raises(sl.LeakError, match="patient 'A'"):
        sl.pp.split(sections, by="organ")
    assert len(sl.pp.split(sections, by="organ", allow_shared_patients=True)) == 2
    sections[2].tables["table"].obs["organ"] = "breast"
    with pytest.raises(sl.DataError, match="at least 2 values, found only 'breast'"):
        sl.pp.split(sections, by="organ")


def test_blocks_do_not_depend_on_the_order_of_the_sections() -> None:
    sections = [section("a1"), section("b1"), section("c1")]
    options: dict = {"by": "block", "block_um": 500, "n_folds": 3, "allow_shared_patients": True}
    for one, other in zip(
        sl.pp.split(sections, **options), sl.pp.split([sections[i] for i in (2, 0, 1)], **options), strict=True
    ):
        for side in ("train", "test"):
            found, expected = getattr(other, side), getattr(one, side)
            assert set(found) == set(expected)
            assert all(list(found[name]) == list(expected[name]) for name in found)
