from __future__ import annotations

import numpy as np
import pytest
from spatialdata import SpatialData, get_extent
from spatialdata.models import Image2DModel, Labels2DModel
from spatialdata.transformations import Affine, Identity, Scale, get_transformation

import sealst as sl
from sealst.pp._tissue import tissue_mask

SIZE = 1200


def tissue_image() -> np.ndarray:
    """Grey glass with a square of tissue from 300 to 900."""
    rng = np.random.default_rng(0)
    image = np.full((SIZE, SIZE, 3), 225, dtype=np.uint8)
    image[300:900, 300:900] = np.repeat(np.repeat(rng.integers(90, 210, (150, 150, 3)), 4, 0), 4, 1)
    return image


def section(image: np.ndarray | None = None, mpp: float = 2.0) -> SpatialData:
    # Centres on tissue, on its left edge, on glass, and just inside the image.
    xy = np.array([[600, 600], [300, 600], [150, 150], [1180, 1180], [600, 910]])
    return sl.io.from_arrays(
        tissue_image() if image is None else image,
        np.ones((5, 2)),
        xy,
        genes=["A", "B"],
        mpp=mpp,
        spot_um=55,
        section="s1",
    )


@pytest.fixture
def paired() -> SpatialData:
    sdata = section()
    sl.pp.pair_crops(sdata, crop_um=112, crop_px=56)
    return sdata


def obs(sdata: SpatialData):
    return sdata.tables["table"].obs


def test_fraction_and_reason_of_each_crop(paired):
    sl.pp.tissue(paired)
    fraction = obs(paired)["tissue_fraction"].to_numpy()
    np.testing.assert_allclose(fraction, [1, 0.5, 0, 0, 18 / 56], atol=0.08)
    assert fraction[0] == 1
    assert obs(paired)["crop_reason"].tolist() == ["ok", "ok", "little tissue", "little tissue", "ok"]
    np.testing.assert_array_equal(obs(paired)["crop_ok"], [True, True, False, False, True])
    entry = paired.tables["table"].uns["sealst"]["tissue"]["s1_spots"]
    assert entry["min_tissue"] == 0.15
    assert entry["labels_key"] == "s1_tissue"


def test_another_threshold_gives_what_it_gives_alone(paired):
    sl.pp.tissue(paired, min_tissue=0.9)
    assert obs(paired)["crop_ok"].sum() == 1
    sl.pp.tissue(paired, min_tissue=0.15)
    once = section()
    sl.pp.pair_crops(once, crop_um=112, crop_px=56)
    sl.pp.tissue(once, min_tissue=0.15)
    assert obs(paired)["crop_reason"].tolist() == obs(once)["crop_reason"].tolist()
    sl.pp.tissue(paired, min_tissue=0)
    assert obs(paired)["crop_ok"].all()


def test_other_reasons_stay(paired):
    sdata = section()
    table = sdata.tables["table"]
    sl.pp.pair_crops(sdata, crop_um=112, crop_px=56, min_inside=0.9)
    assert table.obs["crop_reason"].iloc[3] == "outside image"
    for threshold in (1.0, 0.15):
        sl.pp.tissue(sdata, min_tissue=threshold)
        assert table.obs["crop_reason"].iloc[3] == "outside image"
        assert not table.obs["crop_ok"].iloc[3]


def test_mask_can_be_shown_on_the_image(paired):
    sl.pp.tissue(paired)
    labels = paired.labels["s1_tissue"]
    assert set(np.unique(labels)) == {0, 1}
    assert get_extent(labels, coordinate_system="global")["x"] == pytest.approx((0, SIZE))
    assert get_extent(labels, coordinate_system="um")["y"] == pytest.approx((0, SIZE * 2.0))


def test_mask_drawn_by_hand_is_used(paired):
    drawn = np.zeros((SIZE // 10, SIZE // 10), dtype=np.uint8)
    drawn[:30, :30] = 7
    paired.labels["mine"] = Labels2DModel.parse(
        drawn, dims=("y", "x"), transformations={"global": Scale([10, 10], axes=("x", "y"))}
    )
    sl.pp.tissue(paired, labels_key="mine")
    np.testing.assert_allclose(obs(paired)["tissue_fraction"], [0, 0, 1, 0, 0])
    assert "s1_tissue" not in paired.labels


def test_mask_that_was_corrected_is_kept_until_it_is_deleted(paired):
    sl.pp.tissue(paired)
    before = obs(paired)["tissue_fraction"].copy()
    paired.labels["s1_tissue"].data = paired.labels["s1_tissue"].data * 0
    with pytest.warns(sl.SealstWarning, match="No crop of 's1_spots' is left: 5 hold less than 0.15"):
        sl.pp.tissue(paired)
    assert (obs(paired)["tissue_fraction"] == 0).all()
    del paired.labels["s1_tissue"]
    sl.pp.tissue(paired)
    np.testing.assert_array_equal(obs(paired)["tissue_fraction"], before)


def test_turned_labels_are_refused_and_nothing_is_written(paired):
    turn = Affine([[0, 1, 0], [1, 0, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    paired.labels["mine"] = Labels2DModel.parse(
        np.ones((SIZE, SIZE), dtype=np.uint8), dims=("y", "x"), transformations={"global": turn}
    )
    with pytest.raises(sl.DataError, match="turned or mirrored"):
        sl.pp.tissue(paired, labels_key="mine")
    assert "tissue_fraction" not in obs(paired)
    assert "tissue" not in paired.tables["table"].uns["sealst"]


def test_labels_without_a_shared_frame_are_refused(paired):
    paired.labels["mine"] = Labels2DModel.parse(
        np.ones((SIZE, SIZE), dtype=np.uint8), dims=("y", "x"), transformations={"elsewhere": Identity()}
    )
    with pytest.raises(sl.DataError, match="share no coordinate system"):
        sl.pp.tissue(paired, labels_key="mine")


def test_errors_name_the_next_call(paired):
    with pytest.raises(sl.OrderError, match=r"Run `sl.pp.pair_crops\(sdata\)` first"):
        sl.pp.tissue(section())
    with pytest.raises(sl.MissingKeyError, match="'absent' not found in `sdata.labels`"):
        sl.pp.tissue(paired, labels_key="absent")
    with pytest.raises(sl.DataError, match="`min_tissue` must lie between 0 and 1"):
        sl.pp.tissue(paired, min_tissue=15)
    assert not paired.labels


def test_crops_paired_anew_are_judged_anew(paired):
    sl.pp.tissue(paired, min_tissue=0.9)
    sl.pp.pair_crops(paired, crop_um=60, crop_px=56)
    # Fractions of the former crops say nothing about the new ones.
    sl.pp.quality(paired, metrics=["brightness_mean"], progress=False)
    assert obs(paired)["crop_ok"].all()


@pytest.mark.parametrize("value", [255, 230])
def test_glass_alone_is_no_tissue(value):
    image = np.random.default_rng(0).integers(value - 2, value + 1, (SIZE, SIZE, 3)).astype(np.uint8)
    mask, _ = tissue_mask(section(image), "s1_he")
    assert not mask.any()


def test_tissue_that_fills_the_image_is_all_tissue():
    image = np.repeat(np.repeat(np.random.default_rng(0).integers(60, 200, (300, 300, 3)), 4, 0), 4, 1)
    mask, _ = tissue_mask(section(image.astype(np.uint8)), "s1_he")
    assert mask.all()


def test_smaller_pieces_count_and_specks_do_not():
    image = tissue_image()
    image[50:200, 950:1150] = image[400:550, 400:600]  # 0.12 mm²
    image[1000:1010, 100:110] = image[400:410, 400:410]
    mask, (across, down) = tissue_mask(section(image), "s1_he")
    at = lambda x, y: mask[int(y / down), int(x / across)]  # noqa: E731
    assert at(1050, 125)
    assert not at(105, 1005)


def test_smooth_and_dark_places_count():
    image = tissue_image()
    image[500:700, 500:700] = 120  # 0.16 mm² within the tissue
    mask, (across, down) = tissue_mask(section(image), "s1_he")
    assert mask[int(600 / down), int(600 / across)]
    image[500:700, 500:700] = 225
    mask, _ = tissue_mask(section(image), "s1_he")
    assert not mask[int(600 / down), int(600 / across)]


def test_nothing_is_left_behind(paired):
    tissue_mask(paired, "s1_he")
    assert not paired.labels
    assert "tissue_fraction" not in obs(paired)


def test_image_without_pyramid_is_thinned_out():
    sdata = section()
    full, _ = tissue_mask(sdata, "s1_he")
    transformations = get_transformation(sdata.images["s1_he"], get_all=True)
    single = Image2DModel.parse(
        np.moveaxis(tissue_image(), 2, 0), dims=("c", "y", "x"), transformations=transformations
    )
    mask, scale = tissue_mask(SpatialData(images={"s1_he": single}), "s1_he")
    assert scale == (4, 4)
    assert mask.mean() == pytest.approx(full.mean(), rel=0.05)


def test_real_sections(shared_dir, her2st_c2):
    mask, _ = tissue_mask(her2st_c2, "C2_he")
    assert 0.15 < mask.mean() < 0.19
    a1 = sl.datasets.her2st("A1", path=shared_dir / "data" / "her2st")
    mask, (across, down) = tissue_mask(a1, "A1_he")
    picture = np.asarray(a1.images["A1_he"]["scale1"]["image"])
    assert mask.shape == picture.shape[1:]
    assert not mask[: int(534 / down), int(1500 / across) :].any(), "the pasted overview counts as tissue"
    assert not mask[picture.max(axis=0) == 0].any(), "black background counts as tissue"
    assert 0.3 < mask.mean() < 0.38
    with pytest.warns(sl.SealstWarning, match="enlarged"):
        sl.pp.pair_crops(a1)
    sl.pp.tissue(a1)
    # The authors chose the spots under tissue.
    assert a1.tables["table"].obs["crop_ok"].all()
