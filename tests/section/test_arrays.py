from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import spatialdata as sd
from spatialdata import SpatialData

import sealst as sl
from sealst._section import affine, image_levels, mpp_of
from sealst._section import pyramid as _pyramid

Section = Callable[..., SpatialData]


def arrays(**changes: Any) -> tuple[tuple[Any, Any, Any], dict[str, Any]]:
    """Arguments of a section with 3 spots and 2 genes, changed as asked."""
    positional = {
        "image": np.zeros((40, 50, 3), dtype=np.uint8),
        "counts": np.array([[1, 0], [2, 3], [0, 4]]),
        "xy": np.array([[10.0, 5.0], [20.0, 15.0], [30.0, 25.0]]),
    }
    named: dict[str, Any] = {"genes": ["EPCAM", "VIM"], "mpp": 0.5, "spot_um": 10.0, "section": "s1"}
    for key, value in changes.items():
        (positional if key in positional else named)[key] = value
    return (positional["image"], positional["counts"], positional["xy"]), named


def build(**changes: Any) -> SpatialData:
    positional, named = arrays(**changes)
    return sl.io.from_arrays(*positional, **named)


def test_slots() -> None:
    sdata = build(patient="p9", organ="breast", technology="ST", array=np.array([[1, 2], [3, 4], [5, 6]]))
    assert list(sdata.images) == ["s1_he"]
    assert list(sdata.shapes) == ["s1_spots"]
    table = sdata.tables["table"]
    assert list(table.obs_names) == ["s1_0", "s1_1", "s1_2"]
    assert list(table.var_names) == ["EPCAM", "VIM"]
    assert isinstance(table.X, sp.csr_matrix)
    assert table.X.dtype == np.float32
    np.testing.assert_array_equal(table.X.toarray(), [[1, 0], [2, 3], [0, 4]])
    np.testing.assert_array_equal(table.obsm["spatial"], [[10, 5], [20, 15], [30, 25]])
    facts = {"region": "s1_spots", "patient": "p9", "section": "s1", "organ": "breast", "technology": "ST"}
    for column, value in facts.items():
        assert (table.obs[column] == value).all(), column
    np.testing.assert_array_equal(table.obs[["array_row", "array_col"]], [[1, 2], [3, 4], [5, 6]])
    assert table.uns["spatialdata_attrs"] == {
        "region": "s1_spots",
        "region_key": "region",
        "instance_key": "spot_id",
    }
    assert (build().tables["table"].obs["patient"] == "s1").all()


def test_spots_are_circles_at_the_centres() -> None:
    spots = build(spot_ids=["a", "b", "c"]).shapes["s1_spots"]
    assert list(spots.index) == ["a", "b", "c"]
    assert (spots["radius"] == 10.0).all()  # 10 µm diameter at 0.5 µm per pixel
    assert (spots.geometry["b"].x, spots.geometry["b"].y) == (20.0, 15.0)


def test_scale_is_in_the_um_system() -> None:
    sdata = build(mpp=0.25)
    for element in (sdata.images["s1_he"], sdata.shapes["s1_spots"]):
        np.testing.assert_allclose(affine(element, "um"), np.diag([0.25, 0.25, 1]))
        np.testing.assert_allclose(affine(element, "global"), np.eye(3))
    assert mpp_of(sdata.images["s1_he"]) == pytest.approx(0.25)


def test_full_resolution_level_is_the_image(toy_section: Section) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (70, 50, 3), dtype=np.uint8)
    level = image_levels(build(image=image).images["s1_he"])[0]
    assert level.dims == ("c", "y", "x")
    np.testing.assert_array_equal(level.to_numpy().transpose(1, 2, 0), image)
    # Pixel 0 covers [0, 1).
    assert float(level.x[0]) == float(level.y[0]) == 0.5


@pytest.mark.parametrize("shape", [(201, 199), (200, 256), (131, 250)])
def test_levels_stay_aligned(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    # Red holds the x of a pixel and green its y, so every level must read its own coordinates.
    monkeypatch.setattr(_pyramid, "CHUNK_PX", 32)
    image = np.zeros((*shape, 3), dtype=np.uint8)
    image[..., 0], image[..., 1] = np.arange(shape[1])[None, :], np.arange(shape[0])[:, None]
    levels = image_levels(build(image=image).images["s1_he"])
    assert [level.shape[1:] for level in levels] == [(shape[0] // 2**i, shape[1] // 2**i) for i in range(len(levels))]
    assert max(levels[-1].shape) <= 32
    for i, level in enumerate(levels):
        x, y = (level[axis].to_numpy() - 0.5 for axis in "xy")
        red, green = level.to_numpy()[:2].astype(float)
        np.testing.assert_allclose(red - x, 0, atol=0.51 * max(i, 1), err_msg=f"level {i}")
        np.testing.assert_allclose(green - y[:, None], 0, atol=0.51 * max(i, 1), err_msg=f"level {i}")
        assert abs((red - x).mean()) < 0.6, f"level {i} is shifted"
        assert abs((green - y[:, None]).mean()) < 0.6, f"level {i} is shifted"
        # The transformation of a level agrees with its coordinates.
        to_full = affine(level, "global")
        np.testing.assert_allclose(to_full[0, 0] * 0.5, float(level.x[0]))
        np.testing.assert_allclose(to_full[1, 1] * 0.5, float(level.y[0]))


def test_levels_are_block_means() -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    level = image_levels(build(image=image).images["s1_he"])[1].to_numpy().transpose(1, 2, 0)
    means = image.reshape(32, 2, 48, 2, 3).mean(axis=(1, 3))
    assert level.dtype == np.uint8
    np.testing.assert_allclose(level, means, atol=0.501)


def test_caller_arrays_are_not_shared() -> None:
    counts, xy = sp.csr_matrix(np.array([[1, 0], [2, 3], [0, 4]], dtype=np.float32)), np.ones((3, 2))
    table = build(counts=counts, xy=xy).tables["table"]
    table.X.data[:] = 7
    table.obsm["spatial"][:] = 7
    assert counts.data.max() == 4
    assert xy.max() == 1


def test_sparse_dense_and_frame_counts_agree() -> None:
    dense = np.array([[1, 0], [2, 3], [0, 4]])
    for counts in (sp.coo_matrix(dense), sp.csc_array(dense), pd.DataFrame(dense)):
        np.testing.assert_array_equal(build(counts=counts).tables["table"].X.toarray(), dense)


def test_obs_columns_in_the_order_of_counts() -> None:
    obs = pd.DataFrame({"label": pd.Categorical(["t", "s", "t"], categories=["s", "t", "u"]), "n": [1, 2, 3]})
    table = build(obs=obs).tables["table"]
    assert list(table.obs["label"]) == ["t", "s", "t"]
    assert list(table.obs["label"].cat.categories) == ["s", "t", "u"]
    assert table.obs["n"].dtype == np.int64


def test_obs_columns_join_by_id() -> None:
    obs = pd.DataFrame({"label": ["third", "first", "second"]}, index=["c", "a", "b"])
    table = build(obs=obs, spot_ids=["a", "b", "c"]).tables["table"]
    assert list(table.obs["label"]) == ["first", "second", "third"]


def test_thumbnail_for_squidpy() -> None:
    image = np.zeros((900, 1700, 3), dtype=np.uint8)
    image[450:, :, 1] = 200
    library = build(image=image).tables["table"].uns["spatial"]["s1"]
    hires, factors = library["images"]["hires"], library["scalefactors"]
    assert hires.shape == (424, 800, 3)
    assert factors["tissue_hires_scalef"] == pytest.approx(800 / 1700)
    assert factors["spot_diameter_fullres"] == 20.0
    assert hires[:200, :, 1].max() == 0
    assert hires[230:, :, 1].min() == 200
    assert "spatial" not in build(thumbnail=False).tables["table"].uns


def test_survives_zarr(toy_section: Section, tmp_path: Path) -> None:
    before = toy_section()
    before.write(tmp_path / "toy.zarr")
    after = sd.read_zarr(tmp_path / "toy.zarr")
    for a, b in zip(image_levels(before.images["toy_he"]), image_levels(after.images["toy_he"]), strict=True):
        np.testing.assert_array_equal(a.to_numpy(), b.to_numpy())
        np.testing.assert_allclose(a.x, b.x)
    assert mpp_of(after.images["toy_he"]) == pytest.approx(1.0)
    assert list(after.shapes["toy_spots"].index) == list(before.shapes["toy_spots"].index)
    one, two = before.tables["table"], after.tables["table"]
    np.testing.assert_array_equal(one.X.toarray(), two.X.toarray())
    pd.testing.assert_frame_equal(one.obs, two.obs, check_dtype=False, check_categorical=False)


def test_toy_section_is_what_it_says(toy_section: Section) -> None:
    sdata = toy_section()
    table = sdata.tables["table"]
    x = table.X.toarray()
    assert np.corrcoef(x[:, 0], table.obs["array_col"])[0, 1] > 0.8
    assert np.corrcoef(x[:, 1], table.obs["array_row"])[0, 1] > 0.8
    np.testing.assert_array_equal(toy_section().tables["table"].X.toarray(), x)
    level = image_levels(sdata.images["toy_he"])[0].to_numpy()
    centre = table.obsm["spatial"].astype(int)
    np.testing.assert_array_equal(level[0, centre[:, 1], centre[:, 0]], centre[:, 0] * 255 // 599)


BAD = {
    "image as floats": ({"image": np.zeros((40, 50, 3))}, r"`image` must be uint8 .*found float64 \(40, 50, 3\)"),
    "image in grey": ({"image": np.zeros((40, 50), dtype=np.uint8)}, r"`image` must be uint8 .*found uint8 \(40, 50\)"),
    "image with alpha": ({"image": np.zeros((40, 50, 4), dtype=np.uint8)}, r"found uint8 \(40, 50, 4\)"),
    "image without pixels": ({"image": np.zeros((0, 50, 3), dtype=np.uint8)}, r"found uint8 \(0, 50, 3\)"),
    "xy with three columns": ({"xy": np.zeros((3, 3))}, r"`xy` must be \(spots, 2\), found \(3, 3\)"),
    "xy with NaN": ({"xy": np.array([[1, 2], [np.nan, 3], [4, np.inf]])}, "NaN or infinite coordinates in 2 rows"),
    "no spots": ({"xy": np.zeros((0, 2)), "counts": np.zeros((0, 2))}, "`xy` holds no spots"),
    "counts of other spots": ({"counts": np.zeros((4, 2))}, r"`counts` is \(4, 2\), but `xy` has 3 spots"),
    "counts of other genes": ({"genes": ["EPCAM"]}, r"`genes` 1 names"),
    "counts with NaN": ({"counts": np.array([[1, 0], [np.nan, 3], [0, 4]])}, "1 negative, NaN or infinite"),
    "negative counts": ({"counts": np.array([[1, 0], [-2, 3], [0, -4]])}, "2 negative, NaN or infinite"),
    "infinite counts": ({"counts": np.array([[1, 0], [np.inf, 3], [0, 4]])}, "1 negative, NaN or infinite"),
    "genes twice": ({"genes": ["EPCAM", "EPCAM"]}, "Duplicate gene names in `genes`: 'EPCAM'"),
    "gene without a name": ({"genes": ["EPCAM", " "]}, r"1 empty gene names in `genes` \(first at column 1\)"),
    "ids twice": ({"spot_ids": ["a", "a", "b"]}, "`spot_ids` must be 3 unique names, found 3 with 2 unique"),
    "too few ids": ({"spot_ids": ["a", "b"]}, "`spot_ids` must be 3 unique names, found 2"),
    "mpp zero": ({"mpp": 0}, "`mpp` must be a positive number, found 0"),
    "mpp NaN": ({"mpp": float("nan")}, "`mpp` must be a positive number, found nan"),
    "mpp None": ({"mpp": None}, "`mpp` must be a positive number, found None"),
    "spot_um negative": ({"spot_um": -55.0}, "`spot_um` must be a positive number, found -55.0"),
    "array of other shape": ({"array": np.zeros((3, 3))}, r"`array` must be \(spots, 2\) = \(3, 2\), found \(3, 3\)"),
    "obs too short": ({"obs": pd.DataFrame({"label": ["a", "b"]})}, r"`obs` has 2 rows, expected one per spot \(3\)"),
    "obs with a taken column": ({"obs": pd.DataFrame({"region": list("abc")})}, r"`obs` has column\(s\) 'region'"),
    "section with a slash": ({"section": "a/b"}, "`section` must be a name of letters.*found 'a/b'"),
    "section empty": ({"section": ""}, "`section` must be a name of letters.*found ''"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_bad_input(changes: dict[str, Any], message: str) -> None:
    positional, named = arrays(**changes)
    with pytest.raises(sl.DataError, match=message):
        sl.io.from_arrays(*positional, **named)


def test_image_must_be_an_array() -> None:
    with pytest.raises(TypeError, match=r"`image` must be a numpy array or a SlideImage, found list"):
        build(image=[[[0, 0, 0]]])


def test_obs_that_knows_only_some_spots_is_refused():
    options = {"genes": ["A"], "mpp": 1.0, "spot_um": 10, "spot_ids": ["a", "b", "c"], "thumbnail": False}
    xy = np.array([[5, 5], [10, 10], [15, 15.0]])
    image = np.zeros((20, 20, 3), dtype=np.uint8)
    some = pd.DataFrame({"label": [1, 2, 3]}, index=["c", "b", "x"])
    with pytest.raises(sl.DataError, match="has only 2 of the 3 spots of `spot_ids`"):
        sl.io.from_arrays(image, np.ones((3, 1)), xy, obs=some, **options)
    more = pd.DataFrame({"label": [0, 3, 2, 1]}, index=["x", "c", "b", "a"])
    made = sl.io.from_arrays(image, np.ones((3, 1)), xy, obs=more, **options)
    assert made.tables["table"].obs["label"].tolist() == [1, 2, 3]


def test_var_is_joined_by_gene() -> None:
    options = {"genes": ["B", "A"], "mpp": 1.0, "spot_um": 10, "thumbnail": False}
    xy, image = np.array([[5, 5], [10, 10.0]]), np.zeros((20, 20, 3), dtype=np.uint8)
    var = pd.DataFrame({"gene_ids": ["ENSG1", "ENSG2", "ENSG3"]}, index=["A", "B", "C"])
    made = sl.io.from_arrays(image, np.ones((2, 2)), xy, var=var, **options)
    assert made.tables["table"].var["gene_ids"].to_dict() == {"B": "ENSG2", "A": "ENSG1"}
    with pytest.raises(sl.DataError, match="one row for every gene, indexed by name; found 2 rows, without 'A'"):
        sl.io.from_arrays(image, np.ones((2, 2)), xy, var=var.iloc[1:], **options)
    with pytest.raises(sl.DataError, match="found 2 rows with names twice: 'A'"):
        sl.io.from_arrays(image, np.ones((2, 2)), xy, var=var.iloc[[0, 0]], **options)


@pytest.mark.parametrize("size", [(2048, 2048), (2051, 1333), (4099, 9), (1500, 2049)])
def test_levels_added_to_a_slide_are_means_of_its_pixels(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, *size), dtype=np.uint8)
    # Odd chunks, which must not cut pairs of pixels apart.
    levels = _pyramid.extended([da.from_array(pixels, chunks=(3, 333, 517))])
    assert max(levels[-1].shape[1:]) <= 1024
    expected = pixels
    for level in levels[1:]:
        height, width = (n // 2 for n in expected.shape[1:])
        blocks = expected[:, : 2 * height, : 2 * width].reshape(3, height, 2, width, 2).astype(float)
        expected = np.floor(blocks.mean((2, 4)) + 0.5).astype(np.uint8)
        np.testing.assert_array_equal(np.asarray(level), expected)


def test_a_plain_count_of_rows_is_no_id() -> None:
    counts = np.ones((3, 2))
    sdata = sl.io.from_arrays(
        np.zeros((64, 64, 3), np.uint8), counts, np.full((3, 2), 30.0), genes=["A", "B"], mpp=1, spot_um=5,
        spot_ids=["2", "0", "1"], obs=pd.DataFrame({"v": [10, 11, 12]}),
    )  # fmt: skip
    assert list(sdata.tables["table"].obs["v"]) == [10, 11, 12]
