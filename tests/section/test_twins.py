"""A section, or a slide, that stands on both sides of a split under two names."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pandas as pd
import pytest

import sealst as sl

XY = np.stack(np.meshgrid(np.arange(5), np.arange(5)), axis=-1).reshape(-1, 2) * 100.0 + 60
GENES = [f"G{i}" for i in range(60)]


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Picture of 520 px and counts of 25 spots."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 255, (520, 520, 3), dtype=np.uint8), rng.poisson(5.0, (25, 60))


def section(name: str, patient: str, *, picture: int, counts: int, xy: np.ndarray = XY, **options):
    return sl.io.from_arrays(
        drawn(picture)[0], drawn(counts)[1][: len(xy)], xy, genes=GENES, mpp=1.0, spot_um=55, section=name,
        patient=patient, thumbnail=False, **options,
    )  # fmt: skip


def pair(**changes):
    return [section("a", "p1", picture=0, counts=0), section("b", "p2", **({"picture": 1, "counts": 1} | changes))]


def test_sections_of_their_own_may_be_split():
    assert [fold.name for fold in sl.pp.split(pair())] == ["patient-p1", "patient-p2"]
    sl.pp.check_split(*pair())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"counts": 0}, "25 of 25 test spots of section '.' have exactly the counts of training spots of '.'"),
        ({"picture": 0}, "picture under the spots of test section '.' is that of training section.s. '.', pixel by"),
    ],
    ids=["counts", "picture"],
)
def test_one_section_under_two_names_is_refused_across_any_split(changes, text):
    sections = pair(**changes)
    for call in (
        lambda: sl.pp.split(sections),
        lambda: sl.pp.split(sections, by="section"),
        lambda: sl.pp.split(sections, by="patient", n_folds=2),
        lambda: sl.pp.check_split(*sections),
        lambda: sl.pp.check_split(sections[1], sections[0]),
    ):
        with pytest.raises(sl.LeakError, match=text):
            call()
    assert len(sl.pp.split(sections, allow_shared_patients=True)) == 2
    # On one side they are no leak.
    third = section("c", "p3", picture=3, counts=3)
    sections[1].tables["table"].obs["patient"] = "p1"
    sl.pp.check_split(sections, third)
    assert len(sl.pp.split([*sections, third])) == 2


def test_held_out_sections_of_a_training_are_compared():
    train, held = pair(picture=0)
    with pytest.raises(sl.LeakError, match="picture under the spots of test section 'b'"):
        sl.tl.finetune(train, validation=held, encoder="vit_tiny_patch16_224", pretrained=False)


def test_other_spots_of_one_picture_are_another_section():
    """Several arrays, of several patients, may lie on one slide."""
    shifted = XY[:10] + [31, 17]
    sections = [section("a", "p1", picture=0, counts=0), section("b", "p2", picture=0, counts=1, xy=shifted)]
    assert len(sl.pp.split(sections)) == 2


def test_a_picture_of_one_colour_says_nothing():
    sections = pair()
    for sdata in sections:
        (key,) = sdata.images
        for node in sdata.images[key].children.values():
            node["image"].data = da.full_like(node["image"].data, 255)
    assert len(sl.pp.split(sections)) == 2


def test_spots_left_out_and_genes_in_another_order_do_not_hide_a_copy():
    a, b = pair(picture=0, counts=0)
    table = b.tables["table"]
    b.tables["table"] = table[3:, ::-1].copy()
    with pytest.raises(sl.LeakError, match="22 of 22 test spots of section 'b' have exactly the counts"):
        sl.pp.check_split(a, b)
    tables = [one.tables["table"] for one in (a, b)]
    with pytest.raises(sl.LeakError, match="22 of 22 test spots of section 'b'"):
        sl.pp.check_split(*tables)


# -- slides -----------------------------------------------------------------------------------------------------------
def bags(names: str, patients, *, seed: int = 0, copies=()):
    rng = np.random.default_rng(seed)
    arrays = {name: rng.normal(size=(6, 4)).astype(np.float32) for name in names}
    for name, features in copies:
        arrays[name] = features
    labels = pd.DataFrame({"slide": list(arrays), "y": list("ab") * (len(arrays) // 2), "patient": patients})
    return sl.io.read_bags(arrays, labels=labels)


FIT = {"folds": 2, "params": {"epochs": 1, "patience": None}, "n_bootstrap": 0, "progress": False}


def test_one_slide_under_two_names_is_refused_across_patients_and_in_test():
    known = bags("abcdefgh", range(8))
    turned = known[0].features[::-1].copy()
    twice = bags("abcdefgh", range(8), copies=[("d", turned)])
    with pytest.raises(sl.LeakError, match="Slides 'a', 'd' hold the same tiles, .* but are of patients '0', '3'"):
        sl.tl.fit_slide(twice, "y", **FIT)
    one_patient = bags("abcdefgh", [0, 1, 2, 0, 4, 5, 6, 7], copies=[("d", turned)])
    sl.tl.fit_slide(one_patient, "y", **FIT)
    test = bags("xy", ["q", "r"], seed=1, copies=[("y", turned)])
    with pytest.raises(sl.LeakError, match="Slides 'a', 'y' hold the same tiles, .* are in `bags` and in `test`"):
        sl.tl.fit_slide(known, "y", test=test, **FIT)


@pytest.mark.parametrize(
    ("here", "there"),
    [(range(8), [0.0, 9.0]), (map(str, range(8)), [0.0, 9.0]), (range(8), ["0.0", "9"]), (range(8), [" 0", "9"])],
    ids=["number", "text and number", "text of a number", "blanks"],
)
def test_a_patient_written_to_obs_is_the_same_patient(here, there):
    known, test = bags("abcdefgh", list("ABCDEFGH")), bags("xy", ["q", "r"], seed=1)
    known.obs["patient"], test.obs["patient"] = list(here), there
    with pytest.raises(sl.LeakError, match=r"Patient\(s\) '0' have slides in `bags` and in `test`"):
        sl.tl.fit_slide(known, "y", test=test, **FIT)


@pytest.mark.parametrize("spelling", [1, 1.0, "1", " 1 ", "1.0"])
def test_readers_and_splits_know_a_patient_by_any_spelling_of_a_number(spelling):
    sections = [section("a", 1, picture=0, counts=0), section("b", spelling, picture=1, counts=1)]
    with pytest.raises(sl.LeakError, match="patient '1'"):
        sl.pp.check_split(*sections)
    assert set(sections[1].tables["table"].obs["patient"]) == {"1"}


def test_patient_zero_has_a_name():
    image, counts = drawn(0)
    sdata = sl.io.from_arrays(
        image, counts, XY, genes=GENES, mpp=1.0, spot_um=55, section="s", patient=0, thumbnail=False
    )
    assert set(sdata.tables["table"].obs["patient"]) == {"0"}
    foreign = sl.io.from_spatialdata(sdata, region="s_spots", image_key="s_he", patient=0, mpp=1.0)
    assert set(foreign.tables["table"].obs["patient"]) == {"0"}
