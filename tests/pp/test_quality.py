from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter
from spatialdata import SpatialData
from spatialdata.models import Labels2DModel

import sealst as sl
from sealst._data.crops.reader import read_crops
from sealst._section import image_levels
from sealst.pp._quality import METRICS, measure


def texture_image() -> np.ndarray:
    """Sharp on the left, blurred in the middle, dark and saturated on the right."""
    rng = np.random.default_rng(0)
    sharp = np.repeat(np.repeat(rng.integers(80, 220, (100, 150, 3), dtype=np.uint8), 2, 0), 2, 1)
    image = sharp.copy()
    image[:, 100:200] = np.asarray(Image.fromarray(sharp).filter(ImageFilter.GaussianBlur(3)))[:, 100:200]
    image[:, 200:] = (60, 5, 60)
    return image


def section() -> SpatialData:
    xy = np.array([[50, 100], [150, 100], [250, 100], [299, 199], [20, 150]])
    return sl.io.from_arrays(texture_image(), np.ones((5, 2)), xy, genes=["A", "B"], mpp=1.0, spot_um=20, section="s1")


@pytest.fixture
def paired() -> SpatialData:
    sdata = section()
    sl.pp.pair_crops(sdata, crop_um=40, crop_px=40)
    return sdata


def obs(sdata: SpatialData):
    return sdata.tables["table"].obs


def test_metrics_tell_blur_and_folds(paired):
    sl.pp.quality(paired, metrics=("tenengrad", "var_of_laplacian", "fold_fraction", "brightness_mean"), progress=False)
    sharp, blurred, fold = (obs(paired).iloc[i] for i in range(3))
    for metric in ("tenengrad", "var_of_laplacian"):
        assert sharp[f"quality_{metric}"] > 5 * blurred[f"quality_{metric}"]
    assert fold["quality_fold_fraction"] == 1
    assert sharp["quality_fold_fraction"] == 0
    assert fold["quality_brightness_mean"] < 60 < sharp["quality_brightness_mean"]
    # Outside the image there is nothing to measure.
    assert obs(paired)["crop_reason"].iloc[3] == "outside image"
    assert np.isnan(obs(paired)["quality_tenengrad"].iloc[3])
    assert obs(paired)["quality_tenengrad"].notna().sum() == 4


def test_values_are_squidpys_on_the_crops_that_the_encoder_sees(paired):
    from squidpy.experimental.im._qc_metrics import QCMetric, get_metric_info

    sl.pp.quality(paired, metrics=["tenengrad", "hematoxylin_mean"], progress=False)
    boxes = np.array([[30, 80, 70, 120], [0, 130, 40, 170]])
    crops = read_crops(image_levels(paired.images["s1_he"]), boxes, 40)
    for row, crop in zip((0, 4), crops, strict=True):
        grey = crop.astype(np.float32) @ np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)
        expected = get_metric_info(QCMetric.TENENGRAD)[1](grey)
        assert obs(paired)["quality_tenengrad"].iloc[row] == pytest.approx(float(expected[0, 0]), rel=1e-4)
        expected = get_metric_info(QCMetric.HEMATOXYLIN_MEAN)[1](crop.astype(np.float32) / 255)
        assert obs(paired)["quality_hematoxylin_mean"].iloc[row] == pytest.approx(float(expected[0, 0]), rel=1e-4)


@pytest.mark.parametrize("px", [7, 32])
def test_every_metric_of_a_crop_is_its_own(px):
    crops = np.random.default_rng(0).integers(0, 255, (5, px, px, 3), dtype=np.uint8)
    values = measure(crops, METRICS)
    assert values.shape == (5, len(METRICS))
    assert np.isfinite(values).all()
    np.testing.assert_allclose(measure(crops[2:3], METRICS)[0], values[2], rtol=1e-4, atol=1e-6)


def test_thresholds_set_crops_aside_and_can_be_changed(paired):
    sl.pp.quality(paired, metrics=["tenengrad", "fold_fraction"], progress=False)
    assert obs(paired)["crop_ok"].sum() == 4
    low = float(obs(paired)["quality_tenengrad"].iloc[1]) + 1
    limits = {"fold_fraction": (None, 0.5), "tenengrad": (low, None)}
    sl.pp.quality(paired, metrics=["tenengrad", "fold_fraction"], thresholds=limits, progress=False)
    assert obs(paired)["crop_reason"].tolist() == [
        *("ok", "low quality: tenengrad", "low quality: fold_fraction", "outside image", "ok")
    ]
    np.testing.assert_array_equal(obs(paired)["crop_ok"], [True, False, False, False, True])
    sl.pp.quality(paired, metrics=["tenengrad"], progress=False)
    assert obs(paired)["crop_ok"].sum() == 4


def test_new_thresholds_need_no_pixels(paired, monkeypatch):
    sl.pp.quality(paired, metrics=["tenengrad"], progress=False)

    def refuse(*args, **kwargs):
        raise AssertionError("pixels were read again")

    monkeypatch.setattr("sealst.pp._quality.measure", refuse)
    sl.pp.quality(paired, metrics=["tenengrad"], thresholds={"tenengrad": (1e9, None)}, progress=False)
    assert not obs(paired)["crop_ok"].any()
    del obs(paired)["quality_tenengrad"]
    with pytest.raises(AssertionError, match="read again"):
        sl.pp.quality(paired, metrics=["tenengrad"], progress=False)
    with pytest.raises(AssertionError, match="read again"):
        sl.pp.quality(paired, metrics=["tenengrad", "entropy"], progress=False)


@pytest.mark.parametrize("tissue_first", [True, False])
def test_order_of_tissue_and_quality_does_not_matter(paired, tissue_first):
    drawn = np.zeros((200, 300), dtype=np.uint8)
    drawn[:, :180] = 1
    paired.labels["s1_tissue"] = Labels2DModel.parse(drawn, dims=("y", "x"))
    sl.pp.quality(paired, metrics=["tenengrad"], progress=False)
    limits = {"tenengrad": (float(obs(paired)["quality_tenengrad"].iloc[1]) + 1, None)}
    if tissue_first:
        sl.pp.tissue(paired)
    sl.pp.quality(paired, metrics=["tenengrad"], thresholds=limits, progress=False)
    sl.pp.tissue(paired)
    assert obs(paired)["crop_reason"].tolist() == [
        *("ok", "low quality: tenengrad", "little tissue", "outside image", "ok")
    ]
    sl.pp.tissue(paired, min_tissue=0)
    assert obs(paired)["crop_reason"].iloc[2] == "low quality: tenengrad"


def test_table_can_be_written(paired, tmp_path):
    sl.pp.quality(paired, metrics=["tenengrad"], thresholds={"tenengrad": (None, 5)}, progress=False)
    paired.tables["table"].write_h5ad(tmp_path / "table.h5ad")
    sl.pp.quality(paired, metrics=["entropy"], progress=False)
    paired.tables["table"].write_h5ad(tmp_path / "again.h5ad")


def test_errors_name_what_to_do(paired):
    with pytest.raises(sl.OrderError, match=r"Run `sl.pp.pair_crops\(sdata\)` first"):
        sl.pp.quality(section())
    with pytest.raises(sl.DataError, match="`metrics` must be one of .*'tenengrad'.*found 'pen'"):
        sl.pp.quality(paired, metrics=["pen"])
    with pytest.raises(sl.DataError, match="`thresholds` names 'entropy', which is not in `metrics`"):
        sl.pp.quality(paired, metrics=["tenengrad"], thresholds={"entropy": (1, 2)})
    with pytest.raises(sl.DataError, match=r"must be \(lowest, highest\)"):
        sl.pp.quality(paired, metrics=["tenengrad"], thresholds={"tenengrad": 3})
    with pytest.raises(sl.DataError, match="must run from low to high"):
        sl.pp.quality(paired, metrics=["tenengrad"], thresholds={"tenengrad": (3, 1)})
    assert not [name for name in obs(paired) if name.startswith("quality_")]
