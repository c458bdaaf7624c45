from __future__ import annotations

import json

import dask.array as da
import numpy as np
import pytest
from spatialdata import SpatialData
from spatialdata.transformations import get_transformation

import sealst as sl
from sealst._section import image_levels

#: optical densities (natural logarithm) of two stains, and of the same two in another laboratory
ONE = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
OTHER = np.array([[0.55, 0.76, 0.34], [0.22, 0.95, 0.20]])


def stained(stains: np.ndarray, seed: int = 0, size: int = 800) -> np.ndarray:
    """White glass and a square of tissue with two stains in random amounts."""
    rng = np.random.default_rng(seed)
    side = size * 3 // 4
    cells = (side // 10, side // 10)
    amounts = np.stack([rng.gamma(2.0, 0.5, cells), rng.gamma(2.0, 0.35, cells)])
    amounts[:, rng.random(cells) < 0.4] *= np.array([[0.05], [1.0]])
    amounts[:, rng.random(cells) < 0.3] *= np.array([[1.0], [0.05]])
    density = np.einsum("syx,sc->yxc", np.repeat(np.repeat(amounts, 10, 1), 10, 2), stains)
    image = np.full((size, size, 3), 255, dtype=np.uint8)
    start = size // 8
    image[start : start + side, start : start + side] = np.rint(255 * np.exp(-density))
    return image


def section(stains: np.ndarray = ONE, seed: int = 0, name: str = "s1") -> SpatialData:
    xy = np.array([[400, 400], [300, 300], [200, 500]])
    return sl.io.from_arrays(
        stained(stains, seed), np.ones((3, 2)), xy, genes=["A", "B"], mpp=2.0, spot_um=55, section=name
    )


def pixels(sdata: SpatialData, key: str, level: int = 0) -> np.ndarray:
    return np.asarray(image_levels(sdata.images[key])[level]).astype(int)


@pytest.mark.parametrize("method", ["macenko", "vahadane", "reinhard"])
def test_section_normalised_to_itself_hardly_changes(method):
    sdata = section()
    sl.pp.normalize_stain(sdata, sl.pp.fit_stain(sdata, method))
    for level in range(len(image_levels(sdata.images["s1_he"]))):
        change = np.abs(pixels(sdata, "s1_he_norm", level) - pixels(sdata, "s1_he", level))
        assert change.mean() < 0.5
        assert np.percentile(change, 99) <= 2


def test_macenko_finds_the_stains_and_brings_another_laboratory_to_them():
    reference = sl.pp.fit_stain(section(ONE))
    for found, true in zip(reference.values["stain_matrix"].T, ONE, strict=False):
        assert found @ (true / np.linalg.norm(true)) > 0.99
    # The same tissue, stained in both laboratories.
    wanted, sdata = pixels(section(ONE), "s1_he"), section(OTHER)
    before = np.abs(pixels(sdata, "s1_he") - wanted).mean()
    sl.pp.normalize_stain(sdata, reference)
    after = np.abs(pixels(sdata, "s1_he_norm") - wanted).mean()
    assert after < 0.4 * before
    assert (pixels(sdata, "s1_he_norm")[:, :50] >= 253).all(), "white glass stays white"


def test_one_map_for_every_chunk_and_level():
    sdata, reference = section(OTHER), sl.pp.fit_stain(section(ONE))
    sl.pp.normalize_stain(sdata, reference)
    source, out = pixels(sdata, "s1_he"), pixels(sdata, "s1_he_norm")
    half_source, half = pixels(sdata, "s1_he", 1), pixels(sdata, "s1_he_norm", 1)
    # Equal colours map to equal colours, wherever and on whatever level they lie.
    table: dict[tuple[int, ...], np.ndarray] = {}
    for colours, mapped in ((source, out), (half_source, half)):
        for a, b in zip(colours.reshape(3, -1).T[::37], mapped.reshape(3, -1).T[::37], strict=True):
            np.testing.assert_array_equal(table.setdefault(tuple(a), b), b)


def test_image_is_lazy_and_only_the_chunks_asked_for_are_read():
    sdata = section(OTHER)
    read: list[tuple[int, int]] = []

    def spy(block: np.ndarray, block_info=None) -> np.ndarray:
        read.append(tuple(block_info[0]["chunk-location"][1:]))
        return block

    finest = sdata.images["s1_he"]["scale0"]["image"]
    watched = finest.data.rechunk((3, 200, 200)).map_blocks(spy, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    sdata.images["s1_he"]["scale0"]["image"] = finest.copy(data=watched)
    sl.pp.normalize_stain(sdata, sl.pp.fit_stain(section(ONE)), labels_key=None)
    read_for_fit = len(read)
    out = image_levels(sdata.images["s1_he_norm"])[0].data
    assert isinstance(out, da.Array)
    assert out.chunks[1:] == watched.chunks[1:]
    np.asarray(out[:, 250:300, 450:480])
    assert set(read[read_for_fit:]) == {(1, 2)}


def test_reinhard_keeps_the_glass_unless_told_otherwise():
    reference = sl.pp.fit_stain(section(ONE), "reinhard")
    sdata = section(OTHER, seed=3)
    sl.pp.normalize_stain(sdata, reference)
    sl.pp.normalize_stain(sdata, reference, keep_background=False, key_added="all")
    source, kept, everything = (pixels(sdata, key) for key in ("s1_he", "s1_he_norm", "all"))
    np.testing.assert_array_equal(kept[:, :40], source[:, :40])
    np.testing.assert_array_equal(kept[:, 300:500, 300:500], everything[:, 300:500, 300:500])
    # Mean of the tissue in each channel is that of the reference.
    wanted = pixels(section(ONE), "s1_he")[:, 150:650, 150:650].mean((1, 2))
    np.testing.assert_allclose(kept[:, 150:650, 150:650].mean((1, 2)), wanted, atol=6)


def test_crops_can_be_cut_from_it_and_name_it():
    sdata = section(OTHER)
    sl.pp.normalize_stain(sdata, sl.pp.fit_stain(section(ONE)))
    assert get_transformation(sdata.images["s1_he_norm"], get_all=True).keys() == {"global", "um"}
    sl.pp.pair_crops(sdata, image_key="s1_he_norm")
    uns = sdata.tables["table"].uns["sealst"]
    assert uns["crops"]["s1_spots"]["image_key"] == "s1_he_norm"
    assert uns["stain"]["s1_he_norm"]["image_key"] == "s1_he"
    assert uns["stain"]["s1_he_norm"]["reference"]["method"] == "macenko"
    assert sdata.tables["table"].obs["crop_ok"].all()
    # Without a name, the image as it was scanned is still the default.
    sl.pp.pair_crops(sdata)
    assert sdata.tables["table"].uns["sealst"]["crops"]["s1_spots"]["image_key"] == "s1_he"


def test_section_survives_the_disk(tmp_path):
    import spatialdata

    sdata = section(OTHER)
    sl.pp.normalize_stain(sdata, sl.pp.fit_stain(section(ONE)))
    sdata.write(tmp_path / "s.zarr")
    back = spatialdata.read_zarr(tmp_path / "s.zarr")
    np.testing.assert_array_equal(pixels(back, "s1_he_norm"), pixels(sdata, "s1_he_norm"))


@pytest.mark.parametrize("method", ["macenko", "vahadane", "reinhard"])
def test_stain_survives_a_file(tmp_path, method):
    stain = sl.pp.fit_stain(section(), method)
    stain.save(tmp_path / "stain.json")
    back = sl.pp.Stain.load(tmp_path / "stain.json")
    assert (back.method, back.section) == (method, "s1")
    assert back.values.keys() == stain.values.keys()
    for name, value in stain.values.items():
        np.testing.assert_array_equal(back.values[name], value)


def test_files_that_are_no_stain_are_refused(tmp_path):
    with pytest.raises(sl.MissingKeyError, match="No stain at"):
        sl.pp.Stain.load(tmp_path / "none.json")
    (tmp_path / "a.json").write_text("hello")
    with pytest.raises(sl.DataError, match="is damaged: it is no JSON"):
        sl.pp.Stain.load(tmp_path / "a.json")
    (tmp_path / "b.json").write_text(json.dumps({"method": "macenko"}))
    with pytest.raises(sl.DataError, match="of another version: `format` is missing"):
        sl.pp.Stain.load(tmp_path / "b.json")
    with pytest.raises(sl.DataError, match=r"A macenko stain needs \['white_point'\]"):
        sl.pp.Stain("macenko", {"stain_matrix": np.eye(3)})
    with pytest.raises(sl.DataError, match="NaN or infinite"):
        sl.pp.Stain("reinhard", {"mu": np.full(3, np.nan), "sigma": np.ones(3)})


def test_errors_leave_nothing_behind():
    sdata, reference = section(OTHER), sl.pp.fit_stain(section(ONE))
    with pytest.raises(sl.DataError, match="`method` must be one of 'macenko'"):
        sl.pp.fit_stain(sdata, "ruifrok")
    with pytest.raises(TypeError, match="`reference` must be a Stain"):
        sl.pp.normalize_stain(sdata, "macenko")
    with pytest.raises(sl.DataError, match=r"\['s1_he'\]` is there, which `sl.pp.normalize_stain` did not write"):
        sl.pp.normalize_stain(sdata, reference, key_added="s1_he")
    assert list(sdata.images) == ["s1_he"]
    sl.pp.normalize_stain(sdata, reference)
    sl.pp.normalize_stain(sdata, reference)
    sl.pp.pair_crops(sdata, image_key="s1_he_norm")
    with pytest.warns(sl.SealstWarning, match="crops of 's1_spots' are of an image that was replaced"):
        sl.pp.normalize_stain(sdata, reference)
    blank = sl.io.from_arrays(
        np.full((600, 600, 3), 250, np.uint8), np.ones((3, 1)), np.full((3, 2), 300), genes=["A"], mpp=2, spot_um=55
    )
    with pytest.raises(sl.DataError, match="No tissue found in image 'section_he'"):
        sl.pp.fit_stain(blank)
    with pytest.raises(sl.DataError, match="No tissue found"):
        sl.pp.normalize_stain(blank, reference)
    assert list(blank.images) == ["section_he"]
    assert "stain" not in blank.tables["table"].uns.get("sealst", {})


def test_something_that_is_no_haematoxylin_and_eosin_is_refused():
    sdata = section(np.array([[0.1, 0.2, 0.97], [0.15, 0.3, 0.94]]))
    with pytest.raises(sl.DataError, match="No macenko stain could be fitted on 's1'"):
        sl.pp.fit_stain(sdata)
