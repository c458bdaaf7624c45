from __future__ import annotations

import gzip
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from spatialdata import SpatialData

import sealst as sl
from sealst._section import image_levels, mpp_of

GENES = ["ERBB2", "ercc-like.1", "NA"]
COLUMNS, ROWS, PITCH = 4, 3, 40.0
WIDTH, HEIGHT = 260, 220


def spots_frame() -> pd.DataFrame:
    """A 4 x 3 array at 40 px per 200 µm (5 µm per pixel), spots slightly off the grid."""
    y, x = (a.ravel() for a in np.divmod(np.arange(COLUMNS * ROWS), COLUMNS))
    off = np.random.default_rng(3).uniform(-0.1, 0.1, (2, x.size))
    new_x, new_y = x + 10 + off[0], y + 20 + off[1]
    return pd.DataFrame(
        {
            "x": x + 10,
            "y": y + 20,
            "new_x": new_x,
            "new_y": new_y,
            "pixel_x": 50 + PITCH * (new_x - 10),
            "pixel_y": 60 + PITCH * (new_y - 20),
            "selected": 1,
        }
    )


def counts_frame() -> pd.DataFrame:
    spots = spots_frame()
    # Not in the order of the spots file.
    order = np.random.default_rng(4).permutation(len(spots))
    index = [f"{spots.x[i]}x{spots.y[i]}" for i in order]
    return pd.DataFrame(np.arange(3 * len(spots)).reshape(-1, 3), index=index, columns=GENES)


def picture() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


class Files:
    """Files of one section; every part can be replaced before reading."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spots, self.counts, self.image = folder / "s_selection.tsv", folder / "s.tsv", folder / "s.png"
        self.write_spots(spots_frame())
        self.write_counts(counts_frame())
        Image.fromarray(picture()).save(self.image)

    def write_spots(self, frame: pd.DataFrame, **options: Any) -> None:
        frame.to_csv(self.spots, sep="\t", index=False, **options)

    def write_counts(self, frame: pd.DataFrame, **options: Any) -> None:
        frame.to_csv(self.counts, sep="\t", **options)

    def read(self, **changes: Any) -> SpatialData:
        arguments = {"counts": self.counts, "spots": self.spots, "image": self.image, "section": "s", "organ": "breast"}
        return sl.io.read_st(**(arguments | changes))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


# -- what is read -----------------------------------------------------------------------------------------------------
def test_counts_and_coordinates_join_by_index(files: Files) -> None:
    table = files.read(patient="p1").tables["table"]
    counts = counts_frame()
    spots = spots_frame().set_index(pd.Index([f"{x}x{y}" for x, y in spots_frame()[["x", "y"]].to_numpy()]))
    assert list(table.obs["spot_id"]) == list(counts.index)
    assert list(table.obs_names) == [f"s_{i}" for i in counts.index]
    np.testing.assert_array_equal(table.X.toarray(), counts.to_numpy())
    np.testing.assert_allclose(table.obsm["spatial"], spots.loc[counts.index, ["pixel_x", "pixel_y"]], atol=1e-9)
    np.testing.assert_array_equal(table.obs["array_row"], spots.loc[counts.index, "y"])
    np.testing.assert_array_equal(table.obs["array_col"], spots.loc[counts.index, "x"])
    assert table.obs["array_row"].dtype.kind == "i"
    facts = {"patient": "p1", "section": "s", "organ": "breast", "technology": "Spatial Transcriptomics"}
    assert table.obs[list(facts)].drop_duplicates().to_dict("records") == [facts]
    assert "label" not in table.obs


def test_gene_names_are_kept(files: Files) -> None:
    assert list(files.read().tables["table"].var_names) == GENES


def test_image_and_spots(files: Files) -> None:
    sdata = files.read()
    np.testing.assert_array_equal(image_levels(sdata.images["s_he"])[0].to_numpy().transpose(1, 2, 0), picture())
    assert sdata.shapes["s_spots"]["radius"].to_numpy() == pytest.approx(10.0)  # 100 µm at 5 µm per pixel


def test_image_files_are_checked_as_slides_are(files: Files) -> None:
    """Their scale is compared, and grey pages are not taken for colours."""
    tif, fluorescence = files.folder / "s.tif", np.moveaxis(picture() // 8, 2, 0)
    tifffile.imwrite(tif, picture(), photometric="rgb", resolution=(1e4 / 5, 1e4 / 5), resolutionunit="CENTIMETER")
    np.testing.assert_array_equal(
        image_levels(files.read(image=tif).images["s_he"])[0].to_numpy().transpose(1, 2, 0), picture()
    )
    tifffile.imwrite(tif, picture(), photometric="rgb", resolution=(1e4 / 2.5, 1e4 / 2.5), resolutionunit="CENTIMETER")
    with pytest.raises(sl.ScaleError, match=r"4\.9\d* µm per pixel by the pitch of the array, 2\.5 by TIFF|5 µm per"):
        files.read(image=tif)
    # What the array and the argument agree on settles the matter.
    assert files.read(image=tif, mpp=5.0).tables["table"].uns["sealst"]["read_st"]["mpp"] == 5
    for zipped in (False, True):
        path = files.folder / ("s.ome.tif.gz" if zipped else "s.ome.tif")
        tifffile.imwrite(tif.with_name("s.ome.tif"), fluorescence, photometric="minisblack", metadata={"axes": "CYX"})
        if zipped:
            path.write_bytes(gzip.compress(tif.with_name("s.ome.tif").read_bytes()))
        with pytest.raises(sl.DataError, match="no light background|not a colour image"):
            files.read(image=path)


def test_gzipped_tiff_keeps_its_scale_and_its_page(files: Files) -> None:
    path = files.folder / "s.tif.gz"
    with tifffile.TiffWriter(files.folder / "s.tif") as file:
        file.write(picture()[::4, ::4], photometric="rgb", metadata=None)
        file.write(
            picture(), photometric="rgb", metadata=None, resolution=(1e4 / 2.5, 1e4 / 2.5), resolutionunit="CENTIMETER"
        )
    path.write_bytes(gzip.compress((files.folder / "s.tif").read_bytes()))
    slide = sl.io.open_image(path)
    assert slide.mpp == pytest.approx(2.5)
    np.testing.assert_array_equal(np.moveaxis(np.asarray(slide.levels[0]), 0, 2), picture())


def diamond() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every other place of a row, shifted from row to row, 21.6 x 24.05 px apart, as on the second generation."""
    x, y = (a.ravel() for a in np.meshgrid(np.arange(1, 9), np.arange(1, 8)))
    on = (x + y) % 2 == 0
    x, y = x[on], y[on]
    spots = pd.DataFrame({"x": x, "y": y, "pixel_x": x * 21.6, "pixel_y": y * 24.05})
    return spots, pd.DataFrame(1, index=[f"{a}x{b}" for a, b in zip(x, y, strict=True)], columns=GENES)


def test_staggered_arrays_are_settled_by_the_scale(files: Files) -> None:
    spots, counts = diamond()
    files.write_spots(spots)
    files.write_counts(counts)
    with pytest.raises(sl.ScaleError, match=r"array is staggered: .* Pass `mpp=`.*columns are 21\.6 and rows 24\.05"):
        files.read()
    for sdata in (files.read(mpp=4.41), sl.io.read(files.folder, mpp=4.41)):
        entry = sdata.tables["table"].uns["sealst"]["read_st"]
        assert entry["mpp"] == 4.41
        assert entry["pitch_um"] == pytest.approx(4.41 * np.hypot(21.6, 24.05))
        assert mpp_of(sdata.images[sdata.tables["table"].obs["section"].iloc[0] + "_he"]) == pytest.approx(4.41)
    tifffile.imwrite(files.folder / "s.tif", picture(), photometric="rgb", resolution=(1e4 / 2, 1e4 / 2),
                     resolutionunit="CENTIMETER")  # fmt: skip
    with pytest.raises(sl.ScaleError, match=r"4\.41 µm per pixel by `mpp`, 2 by TIFF"):
        files.read(mpp=4.41, image=files.folder / "s.tif")


def test_layouts_of_counts(files: Files) -> None:
    expected = files.read().tables["table"]
    frame = counts_frame()
    packed = files.folder / "packed.tsv.gz"
    with gzip.open(packed, "wt") as stream:
        frame.to_csv(stream, sep="\t")
    transposed = files.folder / "transposed.tsv"
    frame.T.to_csv(transposed, sep="\t")
    # R writes no name above the row names.
    cornerless = files.folder / "cornerless.tsv"
    cornerless.write_text("\t".join(GENES) + "\n" + frame.to_csv(sep="\t", header=False))
    for path in (packed, transposed, cornerless):
        table = files.read(counts=path).tables["table"]
        assert list(table.var_names) == GENES, path.name
        assert list(table.obs_names) == list(expected.obs_names), path.name
        np.testing.assert_array_equal(table.X.toarray(), expected.X.toarray(), err_msg=path.name)


def test_spots_without_partner_are_dropped_and_reported(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    spots = spots_frame()
    spots.loc[[0, 5], "selected"] = 0
    files.write_spots(spots)
    files.write_counts(counts_frame().drop(["11x21", "12x21", "13x20"], errors="raise"))
    with caplog.at_level(logging.INFO, logger="sealst"):
        table = files.read().tables["table"]
    gone = {"10x20", "11x21", "12x21", "13x20"}
    assert set(table.obs["spot_id"]) == set(counts_frame().index) - gone
    assert (
        "s: 8 spots with counts and coordinates; dropped 2 spot(s) without counts and 1 row(s) of counts" in caplog.text
    )
    entry = table.uns["sealst"]["read_st"]
    assert (entry["spots_without_counts"], entry["counts_without_spot"]) == (2, 1)


def test_warns_when_most_counts_have_no_spot(files: Files) -> None:
    files.write_spots(spots_frame().iloc[:5])
    with pytest.warns(sl.SealstWarning, match="only 5 of 12 rows of counts have a spot"):
        files.read()


# -- scale ------------------------------------------------------------------------------------------------------------
def test_scale_comes_from_the_pitch(files: Files) -> None:
    sdata = files.read()
    assert mpp_of(sdata.images["s_he"]) == pytest.approx(5.0, rel=1e-6)
    assert sdata.tables["table"].uns["sealst"]["read_st"]["mpp_source"] == "pitch"
    assert mpp_of(files.read(pitch_um=100).images["s_he"]) == pytest.approx(2.5, rel=1e-6)


def test_given_scale_that_agrees_is_used(files: Files) -> None:
    sdata = files.read(mpp=5.2)
    assert mpp_of(sdata.images["s_he"]) == pytest.approx(5.2)
    assert sdata.tables["table"].uns["sealst"]["read_st"]["mpp_source"] == "argument"


@pytest.mark.parametrize("mpp", [4.7, 5.3, 0.5])
def test_given_scale_that_contradicts_the_pitch(files: Files, mpp: float) -> None:
    with pytest.raises(sl.ScaleError, match=rf"`mpp` is {mpp} µm per pixel, but the pitch of 40 pixels .* gives 5\b"):
        files.read(mpp=mpp)


def test_scale_survives_misplaced_spots(files: Files) -> None:
    spots = spots_frame()
    spots.loc[2, ["pixel_x", "pixel_y"]] = [5.0, 200.0]
    files.write_spots(spots)
    assert mpp_of(files.read().images["s_he"]) == pytest.approx(5.0, rel=0.01)


def test_scale_without_adjusted_coordinates(files: Files) -> None:
    spots = spots_frame().drop(columns=["new_x", "new_y"])
    spots["pixel_x"], spots["pixel_y"] = 50 + PITCH * (spots["x"] - 10), 60 + PITCH * (spots["y"] - 20)
    files.write_spots(spots)
    assert mpp_of(files.read().images["s_he"]) == pytest.approx(5.0)


def test_different_pitch_along_x_and_y(files: Files) -> None:
    spots = spots_frame()
    spots["pixel_y"] = 60 + 44 * (spots["new_y"] - 20)
    files.write_spots(spots)
    with pytest.raises(sl.ScaleError, match=r"40 pixels along x but 44 along y \(5 and 4.545 µm per pixel\)"):
        files.read()


def test_swapped_axes(files: Files) -> None:
    files.write_spots(spots_frame().rename(columns={"pixel_x": "pixel_y", "pixel_y": "pixel_x"}))
    with pytest.raises(sl.ScaleError, match="`pixel_x` does not follow the array coordinate along x"):
        files.read()


def test_one_row_of_spots_needs_a_scale(files: Files) -> None:
    files.write_spots(spots_frame().iloc[:COLUMNS])
    with pytest.raises(sl.ScaleError, match="one row or column, so the pitch gives no scale. Pass `mpp=`"):
        files.read()
    with pytest.warns(sl.SealstWarning, match="only 4 of 12"):
        sdata = files.read(mpp=5.0)
    assert mpp_of(sdata.images["s_he"]) == 5.0
    # What there is of a pitch is still compared.
    with pytest.raises(sl.ScaleError, match="`mpp` is 6 µm per pixel"):
        files.read(mpp=6.0)


def test_resized_image(files: Files) -> None:
    small = np.asarray(Image.fromarray(picture()).resize((WIDTH // 2, HEIGHT // 2)))
    with pytest.raises(sl.ScaleError, match=r"of 12 spots lie outside the image: .*130 x 110 .*`coordinate_scale=`"):
        files.read(image=small)
    sdata = files.read(image=small, coordinate_scale=0.5)
    assert mpp_of(sdata.images["s_he"]) == pytest.approx(10.0, rel=1e-6)
    full = files.read().tables["table"].obsm["spatial"]
    np.testing.assert_allclose(sdata.tables["table"].obsm["spatial"], full / 2)
    np.testing.assert_allclose(sdata.shapes["s_spots"]["radius"], 5.0)


@settings(max_examples=15, deadline=None)
@given(
    pitch=st.floats(15, 300),
    flip=st.tuples(st.sampled_from([-1, 1]), st.sampled_from([-1, 1])),
    tilt=st.floats(-3, 3),
    pitch_um=st.sampled_from([100.0, 200.0]),
)
def test_scale_of_any_array(pitch: float, flip: tuple[int, int], tilt: float, pitch_um: float) -> None:
    # Mirrored and slightly tilted arrays have the same pitch.
    spots = spots_frame()
    angle = np.deg2rad(tilt)
    u, v = flip[0] * (spots["new_x"] - 11.5), flip[1] * (spots["new_y"] - 21)
    spots["pixel_x"] = 4 * pitch + pitch * (np.cos(angle) * u - np.sin(angle) * v)
    spots["pixel_y"] = 4 * pitch + pitch * (np.sin(angle) * u + np.cos(angle) * v)
    image = np.broadcast_to(np.uint8(200), (int(8 * pitch) + 1, int(8 * pitch) + 1, 3))
    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder))
        files.write_spots(spots)
        sdata = files.read(image=image, pitch_um=pitch_um)
    assert mpp_of(sdata.images["s_he"]) == pytest.approx(pitch_um / pitch, rel=0.01)


# -- labels -----------------------------------------------------------------------------------------------------------
def test_labels_from_a_file_with_positions(files: Files) -> None:
    path = files.folder / "labels.tsv"
    # As pathologists' files have it: adjusted coordinates, an extra row, a row without a position.
    path.write_text(
        "Row.names\tx\ty\tpixel_x\tlabel\n1x1\t9.98\t20.03\t3.1\ttumour\n1x2\t13.02\t21.97\t3.2\tstroma\n"
        "1x3\t30.1\t30.2\t3.2\tstroma\n1x4\tNA\tNA\t3.2\tfat\n"
    )
    obs = files.read(annotations=path).tables["table"].obs.set_index("spot_id")
    assert isinstance(obs["label"].dtype, pd.CategoricalDtype)
    assert obs["label"].dropna().to_dict() == {"10x20": "tumour", "13x22": "stroma"}


def test_labels_from_a_frame_by_index(files: Files) -> None:
    labels = pd.DataFrame({"label": range(12)}, index=counts_frame().index).sample(frac=1, random_state=0)
    obs = files.read(annotations=labels).tables["table"].obs
    assert list(obs["label"]) == [str(labels.loc[i, "label"]) for i in obs["spot_id"]]


def test_labels_from_a_file_by_first_column(files: Files) -> None:
    path = files.folder / "labels.tsv"
    path.write_text("spot\tlabel\n11x20\t3\n")
    obs = files.read(annotations=path).tables["table"].obs.set_index("spot_id")
    assert obs["label"].dropna().to_dict() == {"11x20": "3"}


# -- images -----------------------------------------------------------------------------------------------------------
def test_large_images_pass_and_the_limit_is_restored(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(files.image)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        files.read()
    assert Image.MAX_IMAGE_PIXELS == 1000
    files.image.write_bytes(b"no image")
    with pytest.raises(sl.DataError, match="could not be read as an image"):
        files.read()
    assert Image.MAX_IMAGE_PIXELS == 1000


@pytest.mark.parametrize("name", ["s.tif", "s.png", "s.jpg"])
def test_image_formats(files: Files, name: str) -> None:
    path = files.folder / name
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), (200, 100, 50), dtype=np.uint8)).save(path)
    level = image_levels(files.read(image=path).images["s_he"])[0].to_numpy()
    np.testing.assert_allclose(level[:, 100, 100].astype(int), [200, 100, 50], atol=2)


def test_image_with_transparency(files: Files) -> None:
    Image.fromarray(np.dstack([picture(), np.full((HEIGHT, WIDTH), 255, np.uint8)])).save(files.image)
    level = image_levels(files.read().images["s_he"])[0].to_numpy()
    np.testing.assert_array_equal(level.transpose(1, 2, 0), picture())


def test_truncated_image(files: Files) -> None:
    files.image.write_bytes(files.image.read_bytes()[:5000])
    with pytest.raises(sl.DataError, match=r"s\.png could not be read as an image"):
        files.read()


# -- what is refused --------------------------------------------------------------------------------------------------
def edit_spots(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Files], dict[str, Any]]:
    def apply(files: Files) -> dict[str, Any]:
        files.write_spots(change(spots_frame()))
        return {}

    return apply


def edit_counts(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Files], dict[str, Any]]:
    def apply(files: Files) -> dict[str, Any]:
        files.write_counts(change(counts_frame()))
        return {}

    return apply


def write(attribute: str, content: bytes | str) -> Callable[[Files], dict[str, Any]]:
    def apply(files: Files) -> dict[str, Any]:
        getattr(files, attribute).write_bytes(content if isinstance(content, bytes) else content.encode())
        return {}

    return apply


def headerless(files: Files) -> dict[str, Any]:
    files.write_spots(spots_frame(), header=False)
    return {}


def grey_image(files: Files) -> dict[str, Any]:
    Image.fromarray(picture()[..., 0]).save(files.image)
    return {}


def damaged_gzip(files: Files) -> dict[str, Any]:
    path = files.folder / "cut.tsv.gz"
    path.write_bytes(gzip.compress(files.counts.read_bytes())[:-20])
    return {"counts": path}


BAD: dict[str, tuple[Callable[[Files], dict[str, Any]], str]] = {
    "no counts file": (lambda f: {"counts": f.folder / "x.tsv"}, r"`counts`: no file at '.*x\.tsv' \(looked for '/"),
    "no spots file": (lambda f: {"spots": "x.tsv"}, r"`spots`: no file at 'x\.tsv' \(looked for '/.*x\.tsv'\)"),
    "no image": (lambda f: {"image": f.folder}, r"`image`: no file at"),
    "no annotations": (lambda f: {"annotations": "l.tsv"}, r"`annotations`: no file at 'l\.tsv'"),
    "spots without pixels": (
        edit_spots(lambda s: s.drop(columns=["pixel_x", "pixel_y"])),
        r"lacks the column\(s\) 'pixel_x', 'pixel_y'; found: 'x', 'y', 'new_x', 'new_y', 'selected'",
    ),
    "spots without a header": (headerless, r"lacks the column\(s\) 'x', 'y', 'pixel_x', 'pixel_y'; found: '10', '20'"),
    "no spot selected": (edit_spots(lambda s: s.assign(selected=0)), r"holds no spots \(rows with `selected` 0"),
    "spots twice": (edit_spots(lambda s: pd.concat([s, s.iloc[:1]])), r"spot\(s\) '10x20' occur more than once"),
    "adjusted x as index": (edit_spots(lambda s: s.assign(x=s["new_x"])), "`x` and `y` must be whole numbers"),
    "text for a pixel": (
        edit_spots(lambda s: s.assign(pixel_x=["?", *s["pixel_x"].astype(str)[1:]])),
        r"1 row\(s\) hold text, nothing or numbers beyond 1e\+09 where positions are expected",
    ),
    "spot beyond any picture": (
        edit_spots(lambda s: s.assign(pixel_x=1e300)),
        r"12 row\(s\) hold text, nothing or numbers beyond 1e\+09",
    ),
    "empty spots file": (write("spots", ""), "s_selection.tsv could not be read as a tab-separated table"),
    "empty counts file": (write("counts", ""), "s.tsv could not be read as a tab-separated table"),
    "binary counts": (write("counts", bytes(range(128, 256))), "s.tsv could not be read as a tab-separated table"),
    "damaged gzip": (damaged_gzip, "cut.tsv.gz could not be read as a tab-separated table"),
    "counts with commas": (write("counts", ",A,B\n10x20,1,2\n"), r"has 1 field\(s\) in its header"),
    "counts without values": (write("counts", "\tA\tB\n"), "s.tsv could not be read as a tab-separated table"),
    "no common spot": (
        edit_counts(lambda c: c.set_axis([f"spot{i}" for i in range(12)], axis=0)),
        r"No spot of s\.tsv .*rows are 'spot0', 'spot1'.*columns 'ERBB2'.*spots file has '10x20', '11x20'",
    ),
    "counts twice": (edit_counts(lambda c: pd.concat([c, c.loc[["11x21"]]])), r"s\.tsv: spot\(s\) '11x21' occur"),
    "genes twice": (
        edit_counts(lambda c: c.set_axis(["A", "B", "A"], axis=1)),
        r"Duplicate gene names in s\.tsv: 'A'",
    ),
    "gene without a name": (edit_counts(lambda c: c.set_axis(["A", "", "B"], axis=1)), r"1 empty gene names in s\.tsv"),
    "normalised counts": (edit_counts(lambda c: c / 7), "`counts` does not hold raw counts"),
    "negative counts": (edit_counts(lambda c: -c), "`counts` holds negative values"),
    "counts all zero": (edit_counts(lambda c: c * 0), "`counts` holds no counts"),
    "text among counts": (
        edit_counts(lambda c: c.assign(ERBB2="many")),
        r"text or empty fields where counts are expected, in column\(s\) 'ERBB2'",
    ),
    "gap among counts": (
        edit_counts(lambda c: c.astype(object).where(c != 4)),
        r"text or empty fields where counts are expected, in column\(s\) 'ercc-like.1'",
    ),
    "labels without a column": (
        lambda f: {"annotations": pd.DataFrame({"region": ["a"]}, index=["10x20"])},
        "`annotations` has no column 'label'; found: 'region'",
    ),
    "labels of other spots": (
        lambda f: {"annotations": pd.DataFrame({"label": ["a"]}, index=["1_1"])},
        "`annotations` names no spot of the section: its spots are '1_1', the section has",
    ),
    "labels twice": (
        lambda f: {"annotations": pd.DataFrame({"label": ["a", "b"]}, index=["10x20", "10x20"])},
        r"`annotations` labels spot\(s\) '10x20' more than once",
    ),
    "grey image": (grey_image, r"s\.png is not a colour image \(Pillow mode 'L'\)"),
    "image as floats": (lambda f: {"image": picture() / 255}, "`image` must be uint8"),
    "flat image": (lambda f: {"image": picture()[..., 0]}, "`image` must be uint8"),
    "pitch of zero": (lambda f: {"pitch_um": 0}, "`pitch_um` must be a positive number"),
    "negative spot size": (lambda f: {"spot_um": -1}, "`spot_um` must be a positive number"),
    "scale of zero": (lambda f: {"coordinate_scale": 0.0}, "`coordinate_scale` must be a positive number"),
    "mpp as text": (lambda f: {"mpp": "0.5"}, "`mpp` must be a positive number, found '0.5'"),
}


@pytest.mark.parametrize(("prepare", "message"), BAD.values(), ids=BAD)
def test_bad_input(files: Files, prepare: Callable[[Files], dict[str, Any]], message: str) -> None:
    changes = prepare(files)
    with pytest.raises(sl.DataError, match=message):
        files.read(**changes)


def test_another_sections_spots_are_refused(shared_dir) -> None:
    folder = shared_dir / "data" / "her2st"
    c2 = (folder / "C2" / "C2.tsv.gz", folder / "C2" / "C2_selection.tsv", folder / "C2" / "5714_HE_BT_C2.jpg")
    with pytest.raises(sl.DataError, match="counts and spots file are of different sections"):
        sl.io.read_st(c2[0], folder / "C3" / "C3_selection.tsv", c2[2], section="C2")


def test_array_columns_that_are_interchanged_are_refused(shared_dir, tmp_path) -> None:
    folder = shared_dir / "data" / "her2st" / "C2"
    spots = pd.read_csv(folder / "C2_selection.tsv", sep="\t")
    spots[["x", "y"]] = spots[["y", "x"]].to_numpy()
    spots.to_csv(tmp_path / "s.tsv", sep="\t", index=False)
    with pytest.raises(sl.DataError, match="columns are interchanged"):
        sl.io.read_st(folder / "C2.tsv.gz", tmp_path / "s.tsv", folder / "5714_HE_BT_C2.jpg", section="C2")
