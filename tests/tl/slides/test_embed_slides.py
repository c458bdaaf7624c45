"""Many slides: one table per slide, whatever breaks on the way."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import tifffile

import sealst as sl
from sealst._data.bags.parts import run_folder
from sealst._data.crops.reader import read_crops
from sealst._section import affine, image_levels, novelty_of
from sealst.models._encoders.encoder import base_name
from sealst.tl._slides import job as _slide_job
from sealst.tl._slides import slides as _slides
from sealst.tl._slides import work as _slide_work
from sealst.tl._slides.job import opened
from sealst.tl._slides.manifest import read_manifest

ENCODER = "vit_tiny_patch16_224"
SMALL = {"crop_um": 64, "crop_px": 32, "pretrained": False, "device": "cpu"}


def write_slide(path: Path, seed: int = 0, *, size: int = 800) -> Path:
    """Pyramidal TIFF at 1 µm per pixel: glass with one piece of stained texture."""
    rng = np.random.default_rng(seed)
    image = np.full((size, size, 3), 242, dtype=np.uint8)
    side = (size - 200) // 10 * 10
    grain = rng.normal(0, 30, (side // 10, side // 10, 1)).repeat(10, 0).repeat(10, 1)
    colour = np.array([170 + 10 * (seed % 3), 110, 170])
    image[100 : 100 + side, 100 : 100 + side] = np.clip(colour + grain, 0, 255).astype(np.uint8)
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib", "metadata": None}
    resolution = {"resolution": (1e4, 1e4), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        file.write(image, subifds=0, **options, **resolution)
        file.write(image[::2, ::2], subfiletype=1, **options)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slides of two patients, and their manifest."""
    folder = tmp_path_factory.mktemp("slides")
    names = ["a", "b", "c"]
    for seed, name in enumerate(names):
        write_slide(folder / f"{name}.tif", seed)
    frame = pd.DataFrame({"slide": names, "path": [f"{n}.tif" for n in names], "patient": ["p1", "p1", "p2"]})
    frame.assign(organ="breast", grade=[1, 2, 3]).to_csv(folder / "manifest.csv", index=False)
    return folder


def table(out: Path, name: str) -> ad.AnnData:
    return ad.read_h5ad(out / "slides" / f"{name}.h5ad")


def same(a: Path, b: Path) -> None:
    """Two folders hold the same tables, byte for byte in every slot."""
    names = sorted(p.name for p in (a / "slides").glob("*.h5ad"))
    assert names == sorted(p.name for p in (b / "slides").glob("*.h5ad"))
    for name in names:
        one, other = (ad.read_h5ad(folder / "slides" / name) for folder in (a, b))
        assert list(one.obs_names) == list(other.obs_names)
        assert one.obs_names.is_unique
        pd.testing.assert_frame_equal(one.obs, other.obs)
        assert set(one.obsm) == set(other.obsm)
        for key in one.obsm:
            np.testing.assert_array_equal(np.asarray(one.obsm[key]), np.asarray(other.obsm[key]), err_msg=key)


# -- results ----------------------------------------------------------------------------------------------------------
def test_slides_are_embedded_like_sections(folder: Path, model, tmp_path: Path) -> None:
    net = pd.DataFrame({"source": ["s"] * 6, "target": model.panel.genes[:6]})
    genes = list(model.panel.genes[:3])
    found = sl.tl.embed_slides(
        folder / "manifest.csv", model, tmp_path / "out", expression=True, genes=genes, net=net, tiles_per_task=30
    )
    assert list(found["slide"]) == ["a", "b", "c"]
    assert list(found["patient"]) == ["p1", "p1", "p2"]
    assert list(found["grade"]) == [1, 2, 3]
    assert (found["status"] == "done").all()
    stored = pd.read_csv(tmp_path / "out" / "manifest.csv")
    pd.testing.assert_frame_equal(stored, found, check_dtype=False)
    assert pd.read_csv(tmp_path / "out" / "failures.csv").empty
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["settings"]["model"] == model.fingerprint
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.name[0] != ".") == [
        "failures.csv", "manifest.csv", "parts", "run.json", "slides",
    ]  # fmt: skip
    assert not list((tmp_path / "out" / "parts").iterdir())

    tiles = table(tmp_path / "out", "b")
    sdata = sl.io.read_wsi(folder / "b.tif", patient="p1", organ="breast")
    sl.pp.tile(sdata, crop_um=64)
    sl.pp.pair_crops(sdata, crop_um=64, crop_px=32)
    sl.tl.predict(sdata, model, net=net)
    expected = sdata.tables["table"][tiles.obs_names]
    assert tiles.n_obs == expected.n_obs == found["n_tiles"][1] > 60
    for column in ("tissue_fraction", "patient", "section", "organ", "spot_id", "crop_ok"):
        assert list(tiles.obs[column]) == list(expected.obs[column]), column
    np.testing.assert_array_equal(tiles.obsm["spatial"], expected.obsm["spatial"])
    np.testing.assert_allclose(tiles.obsm["X_seal"], expected.obsm["X_seal"], atol=1e-4)
    np.testing.assert_allclose(tiles.obs["seal_novelty"], expected.obs["seal_novelty"], atol=1e-3)
    novelty = [novelty_of(one, "X_seal").loc["b"] for one in (tiles, sdata.tables["table"])]
    np.testing.assert_allclose(*novelty, atol=1e-3)
    assert found["novelty"][1] == pytest.approx((tiles.obs["seal_novelty"] > 0.95).mean(), abs=1e-6)
    assert list(tiles.obsm["seal_expression"].columns) == genes
    np.testing.assert_allclose(tiles.obsm["seal_expression"], expected.obsm["seal_expression"][genes], atol=1e-4)
    np.testing.assert_allclose(tiles.obsm["seal_pathways"], expected.obsm["seal_pathways"], atol=1e-3)
    squares = sdata.shapes["b_spots"].loc[tiles.obs["spot_id"]].bounds.to_numpy()
    crops = read_crops(image_levels(sdata.images["b_he"]), squares, 32)
    with model.frozen_encoder():
        base = model.embed_images(crops)
    np.testing.assert_allclose(tiles.obsm["X_frozen"], base, atol=1e-4)
    frozen = tiles.uns["sealst"]["embed"]["X_frozen"]["fingerprint"]
    assert frozen == base_name(model.encoder)
    assert sl.io.read_bags(tmp_path / "out").facts["models"] == {
        "X_seal": model.fingerprint,
        "X_frozen": f"{frozen} at 64 µm, 32 px",
    }
    assert np.abs(tiles.obsm["X_frozen"] - tiles.obsm["X_seal"]).max() > 1e-3
    # Later calls take the embeddings as their own.
    sl.tl.predict(tiles, model, key_added="again")
    np.testing.assert_allclose(tiles.obsm["again"][genes], tiles.obsm["seal_expression"], atol=1e-5)


def test_an_encoder_by_name(folder: Path, tmp_path: Path) -> None:
    found = sl.tl.embed_slides(folder / "manifest.csv", ENCODER, tmp_path / "out", step_um=128, **SMALL)
    tiles = table(tmp_path / "out", "c")
    assert set(tiles.obsm) == {"X_seal", "spatial"}
    assert tiles.obsm["X_seal"].shape == (found["n_tiles"][2], 192)
    entry = tiles.uns["sealst"]["embed"]["X_seal"]
    assert entry["model"] == ENCODER
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert entry["fingerprint"] == run["settings"]["model"]
    assert sl.io.read_bags(tmp_path / "out").facts["models"]["X_seal"] == f"{entry['fingerprint']} at 64 µm, 32 px"
    # The same as of sections, and another where the encoder is pooled otherwise.
    pooled = {}
    for pool in (None, "mean"):
        sdata = sl.io.read_wsi(folder / "c.tif", patient="p2")
        sl.pp.tile(sdata, crop_um=64, step_um=300)
        sl.pp.pair_crops(sdata, crop_um=64, crop_px=32)
        sl.tl.embed(sdata, ENCODER, pool=pool, pretrained=False)
        pooled[pool] = sdata.tables["table"].uns["sealst"]["embed"]["X_seal"]["fingerprint"]
    assert pooled[None] == entry["fingerprint"] != pooled["mean"]
    assert np.unique(np.diff(np.unique(tiles.obsm["spatial"][:, 0]))) == 128


# -- continuing -------------------------------------------------------------------------------------------------------
def test_what_is_finished_is_not_done_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.read_csv(folder / "manifest.csv").assign(path=lambda f: [str(folder / p) for p in f["path"]])
    options = SMALL | {"tiles_per_task": 20}
    sl.tl.embed_slides(frame.iloc[:2], ENCODER, tmp_path / "out", **options)
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out" / "slides").glob("*.h5ad")}
    embedded = []
    original = _slide_work._embed
    monkeypatch.setattr(_slide_work, "_embed", lambda s, *rest: embedded.append(s.name) or original(s, *rest))
    found = sl.tl.embed_slides(frame.iloc[1:], ENCODER, tmp_path / "out", **options)
    assert list(found["slide"]) == ["b", "c"]
    assert set(embedded) == {"c"}
    assert list(pd.read_csv(tmp_path / "out" / "manifest.csv")["slide"]) == ["a", "b", "c"]
    for name, time in times.items():
        assert (tmp_path / "out" / "slides" / name).stat().st_mtime_ns == time
    embedded.clear()
    more = frame.assign(stage=["I", "II", "III"], age=[50, 60, 70])
    again = sl.tl.embed_slides(more, ENCODER, tmp_path / "out", **options)
    assert not embedded, "columns were added"
    assert list(again["stage"]) == ["I", "II", "III"]
    # A patient that is corrected in the manifest is corrected in the table; nothing is embedded for that.
    embedded.clear()
    sl.tl.embed_slides(frame.iloc[:1].assign(patient="p9"), ENCODER, tmp_path / "out", **options)
    assert not embedded
    assert set(table(tmp_path / "out", "a").obs["patient"]) == {"p9"}
    assert list(pd.read_csv(tmp_path / "out" / "manifest.csv").set_index("slide")["patient"].loc[["a", "b"]]) == [
        "p9",
        "p1",
    ]
    # A changed file is another slide, also where its size is the same.
    copy = tmp_path / "a.tif"
    copy.write_bytes((folder / "a.tif").read_bytes())
    embedded.clear()
    sl.tl.embed_slides(frame.iloc[:1].assign(path=str(copy)), ENCODER, tmp_path / "out", **options)
    assert set(embedded) == {"a"}
    with pytest.raises(sl.DataError, match=r"holds slides embedded otherwise \(step_um 64\.0, now 32\.0\)"):
        sl.tl.embed_slides(frame, ENCODER, tmp_path / "out", **options, step_um=32)
    embedded.clear()
    sl.tl.embed_slides(frame.iloc[:1], ENCODER, tmp_path / "out", **options, step_um=128, overwrite=True)
    assert embedded
    assert [p.name for p in (tmp_path / "out" / "slides").glob("*.h5ad")] == ["a.h5ad"]
    assert list(pd.read_csv(tmp_path / "out" / "manifest.csv")["slide"]) == ["a"]


def test_a_run_that_was_cut_off_is_continued(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before every single write, once each: no range is done twice, none is lost, and results are the same."""
    from sealst._data.bags import parts as slide_parts

    sl.tl.embed_slides(folder / "manifest.csv", ENCODER, tmp_path / "whole", **SMALL, tiles_per_task=50)
    done: list[tuple[str, int]] = []
    original, write = _slide_work._embed, slide_parts.Parts.write
    stop_at = {"left": 0}

    def interrupted(parts, start, arrays) -> None:
        stop_at["left"] -= 1
        if stop_at["left"] == 0:
            raise KeyboardInterrupt
        write(parts, start, arrays)
        done.append((parts.folder.parent.name, start))

    monkeypatch.setattr(slide_parts.Parts, "write", interrupted)
    for left in (1, 2, 2, 1, 99):
        stop_at["left"] = left
        try:
            sl.tl.embed_slides(folder / "manifest.csv", ENCODER, tmp_path / "cut", **SMALL, tiles_per_task=50)
        except KeyboardInterrupt:
            assert left != 99
    assert sorted(done) == [(name, start) for name in "abc" for start in (0, 50)]
    same(tmp_path / "whole", tmp_path / "cut")
    assert not [p for p in (tmp_path / "cut").rglob("*") if p.is_file() and p.suffix in (".npz", ".npy")]
    assert original is _slide_work._embed


def rows_of(out: Path) -> list[str]:
    return list(pd.read_csv(out / "manifest.csv", keep_default_na=False)["slide"])


def test_slides_that_left_the_cohort(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out, names = tmp_path / "out", ["NA", "b"]
    paths = [str(write_slide(tmp_path / f"{name}.tif", i, size=400)) for i, name in enumerate(names)]
    frame = pd.DataFrame({"slide": names, "path": paths, "patient": ["NA", "001"], "grade": ["01", "None"]})
    sl.tl.embed_slides(frame, ENCODER, out, **SMALL)
    (out / "parts" / "b").mkdir()
    with caplog.at_level("INFO", logger="sealst"):
        found = sl.tl.embed_slides(frame[:1], ENCODER, out, **SMALL)
    assert "1 slide(s) of earlier runs that are not in this manifest stay" in caplog.text
    assert list(found["slide"]) == ["NA"]
    assert rows_of(out) == ["b", "NA"]
    # What is kept is written as it was read.
    kept = pd.read_csv(out / "manifest.csv", dtype=str, keep_default_na=False).set_index("slide")
    assert kept.loc["b", ["patient", "grade"]].tolist() == ["001", "None"]
    assert kept.loc["NA", ["patient", "grade"]].tolist() == ["NA", "01"]
    sl.tl.embed_slides(frame[:1], ENCODER, out, **SMALL, prune=True)
    assert rows_of(out) == ["NA"]
    assert [p.name for p in (out / "slides").glob("*.h5ad")] == ["NA.h5ad"]
    assert not list((out / "parts").iterdir())
    assert list(sl.io.read_bags(out).obs["patient"]) == ["NA"]


def test_a_run_leaves_the_files_of_others(tmp_path: Path, model) -> None:
    out = tmp_path / "out"
    frame = pd.DataFrame({"path": [str(write_slide(tmp_path / "a.tif", size=400))], "patient": ["p"]})
    net = pd.DataFrame({"source": ["s"] * 6, "target": model.panel.genes[:6]})
    out.mkdir()
    with run_folder(out) as other:
        (other / "net.parquet").touch()
        found = sl.tl.embed_slides(frame, model, out, net=net)
        assert list(found["status"]) == ["done"]
        assert "seal_pathways" in table(out, "a").obsm
        assert list(out.glob(".job-*")) == [other]
        assert (other / "net.parquet").exists()


def test_a_slide_of_a_cohort_is_opened_with_its_picture(tmp_path: Path) -> None:
    """As if it had just been read, cut and embedded; where the file has moved, one says where it is."""
    names = {"a": write_slide(tmp_path / "a.tif", size=400), "b": write_slide(tmp_path / "b.tif", 1, size=500)}
    frame = pd.DataFrame({"slide": list(names), "path": list(map(str, names.values())), "patient": ["p", "q"]})
    out = tmp_path / "out"
    sl.tl.embed_slides(frame, ENCODER, out, **SMALL)
    found = sl.io.read_slide(out, "b")
    expected = sl.io.read_wsi(names["b"], section="b", patient="q")
    sl.pp.tile(expected, crop_um=64)
    sl.pp.pair_crops(expected, crop_um=64, crop_px=32)
    assert set(found.shapes) == set(expected.shapes)
    assert found.attrs["b_he"]["patient"] == "q"
    tiles, cut = found.tables["table"], expected.tables["table"]
    for name, squares in found.shapes.items():
        assert list(squares.index) == list(tiles.obs["spot_id"])
        same = expected.shapes[name].loc[squares.index]
        np.testing.assert_allclose(squares.bounds, same.bounds)
        for system in ("global", "um"):
            np.testing.assert_array_equal(affine(found.shapes[name], system), affine(expected.shapes[name], system))
    np.testing.assert_array_equal(tiles.obsm["spatial"], cut[tiles.obs_names].obsm["spatial"])
    np.testing.assert_array_equal(*(image_levels(s.images["b_he"])[0].values for s in (found, expected)))
    tiles.obs["seal_attention"] = 1 / tiles.n_obs
    sl.pl.slide(found, "tissue_fraction", show=False)
    sl.pl.attention(found, n_crops=2, show=False)
    # Its pixels give the embeddings that it came with.
    sl.tl.embed(found, ENCODER, pretrained=False, device="cpu", key_added="again")
    np.testing.assert_allclose(tiles.obsm["again"], tiles.obsm["X_seal"], atol=1e-4)
    sl.io.write_wsi(found, tmp_path / "b.zarr")
    assert "b_he" in sl.io.read(tmp_path / "b.zarr").images

    with pytest.raises(sl.MissingKeyError, match="holds slides 'a', 'b'; name one with `slide=`"):
        sl.io.read_slide(out)
    with pytest.raises(sl.MissingKeyError, match="'c'"):
        sl.io.read_slide(out, "c")
    with pytest.raises(sl.MissingKeyError, match="is the table of slide 'a', not of 'b'"):
        sl.io.read_slide(out / "slides" / "a.h5ad", "b")
    with pytest.raises(sl.DataError, match="no folder of `tl.embed_slides`"):
        sl.io.read_slide(tmp_path)
    names["a"].rename(tmp_path / "moved.tif")
    with pytest.raises(sl.DataError, match=r"'a' is not at .*a\.tif'.*`path=`"):
        sl.io.read_slide(out, "a")
    with pytest.raises(sl.DataError, match=r"\(500 x 500 px\) is not the picture that slide 'a'"):
        sl.io.read_slide(out, "a", path=names["b"])
    moved = sl.io.read_slide(out / "slides" / "a.h5ad", path=tmp_path / "moved.tif")
    assert moved.attrs["a_he"]["path"] == str(tmp_path / "moved.tif")
    plain = ad.AnnData(np.zeros((2, 0), dtype=np.float32))
    plain.write_h5ad(tmp_path / "plain.h5ad")
    with pytest.raises(sl.DataError, match="not a table of `tl.embed_slides`"):
        sl.io.read_slide(tmp_path / "plain.h5ad")


# -- what goes wrong --------------------------------------------------------------------------------------------------
def test_a_broken_slide_stops_nobody(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.tif").write_bytes((folder / "a.tif").read_bytes()[:5000])
    (tmp_path / "noscale.tif").write_bytes(b"")
    tifffile.imwrite(tmp_path / "noscale.tif", np.zeros((64, 64, 3), np.uint8), photometric="rgb")
    paths = [tmp_path / "broken.tif", folder / "b.tif", tmp_path / "nothing.svs", tmp_path / "noscale.tif"]
    glass = np.full((256, 256, 3), 242, np.uint8)
    tifffile.imwrite(tmp_path / "glass.tif", glass, photometric="rgb", resolution=(1e4, 1e4), resolutionunit=3)
    blank = pd.DataFrame({"path": [str(tmp_path / "glass.tif")], "patient": ["v"]})
    with pytest.warns(sl.SealstWarning, match="1 of 1 slides are blank, without tissue to embed: 'glass'"):
        sl.tl.embed_slides(blank, ENCODER, tmp_path / "blank", **SMALL, retries=2)
    # What holds no tissue is not looked at again.
    (failure,) = pd.read_csv(tmp_path / "blank" / "failures.csv").to_dict("records")
    assert failure["attempts"] == 1
    assert "at least 2 are needed" in failure["error"]
    (row,) = pd.read_csv(tmp_path / "blank" / "manifest.csv").to_dict("records")
    assert (row["status"], row["n_tiles"]) == ("blank", 0)
    # Beside others it is left out of bags.
    both = pd.DataFrame({"path": [str(tmp_path / "glass.tif"), str(folder / "b.tif")], "patient": ["v", "x"]})
    with pytest.warns(sl.SealstWarning, match="1 of 2 slides are blank"):
        sl.tl.embed_slides(both, ENCODER, tmp_path / "both", **SMALL)
    with pytest.warns(sl.SealstWarning, match=r"1 slide\(s\) are blank, without tissue, and left out: 'glass'"):
        assert list(sl.io.read_bags(tmp_path / "both").obs.index) == ["b"]
    frame = pd.DataFrame({"path": [str(p) for p in paths], "patient": list("wxyz")})
    with pytest.warns(sl.SealstWarning, match=r"3 of 4 slides failed; .*failures\.csv' says why"):
        found = sl.tl.embed_slides(frame, ENCODER, tmp_path / "out", **SMALL, retries=2)
    assert list(found["status"]) == ["failed", "done", "failed", "failed"]
    failures = pd.read_csv(tmp_path / "out" / "failures.csv").set_index("slide")
    assert list(failures.columns) == ["path", "error", "attempts"]
    assert set(failures.index) == {"broken", "nothing", "noscale"}
    # A scale that is not stated is not looked for again.
    assert failures["attempts"].to_dict() == {"broken": 3, "nothing": 3, "noscale": 1}
    assert "No slide at" in failures.loc["nothing", "error"]
    assert "does not state its physical scale" in failures.loc["noscale", "error"]
    assert [p.name for p in (tmp_path / "out" / "slides").glob("*.h5ad")] == ["b.h5ad"]
    # Once it is mended, its failure is gone.
    frame["mpp"] = [np.nan, np.nan, np.nan, 1.0]
    frame.loc[2, "path"] = str(write_slide(tmp_path / "nothing.tif", 5))
    with (
        pytest.warns(sl.SealstWarning, match="1 of 4 slides failed"),
        pytest.warns(sl.SealstWarning, match="1 of 4 slides are blank, without tissue to embed: 'noscale'"),
    ):
        found = sl.tl.embed_slides(frame, ENCODER, tmp_path / "out", **SMALL, retries=0)
    assert list(found["status"]) == ["failed", "done", "done", "blank"]
    assert set(pd.read_csv(tmp_path / "out" / "failures.csv")["slide"]) == {"broken", "noscale"}


def test_a_lost_tile_takes_only_what_touches_it(tmp_path: Path) -> None:
    paths = [write_slide(tmp_path / f"{name}.tif", 3) for name in ("whole", "lost")]
    with tifffile.TiffFile(paths[1], mode="r+b") as file:
        tag = file.pages[0].tags["TileByteCounts"]
        sizes = list(tag.value)
        sizes[5] = 0  # rows and columns 256 to 512
        tag.overwrite(sizes)
    frame = pd.DataFrame({"path": [str(p) for p in paths], "patient": list("ab")})
    found = sl.tl.embed_slides(frame, ENCODER, tmp_path / "out", **SMALL)
    assert list(found["status"]) == ["done", "done"]
    whole, lost = (ad.read_h5ad(tmp_path / "out" / "slides" / f"{name}.h5ad") for name in ("whole", "lost"))
    near = (np.abs(whole.obsm["spatial"] - 384) < 128 + 32).all(axis=1)
    kept = pd.Index(lost.obs["spot_id"])
    assert near.sum() == 16
    assert not kept.isin(whole.obs["spot_id"][near]).any()
    assert whole.obs["spot_id"][~near].isin(kept).mean() > 0.9
    rows = pd.Index(whole.obs["spot_id"]).get_indexer(kept)
    np.testing.assert_allclose(lost.obsm["X_seal"], whole.obsm["X_seal"][rows], atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ({"file": ["a"]}, sl.MissingKeyError, "no column 'path'; found: 'file'"),
        ({"path": []}, sl.DataError, "lists no slide"),
        ({"path": ["x/a.tif", ""]}, sl.DataError, "`path` is empty in line"),
        ({"path": ["x/a.tif", "y/a.tif"]}, sl.DataError, "slide name\\(s\\) 'a', 'a' occur twice"),
        ({"path": ["x.tif", "x.tif"], "slide": ["a", "b"]}, sl.DataError, "occur twice; a slide counts once"),
        ({"path": ["x.tif"], "slide": ["../a"]}, sl.DataError, "Slide name '../a' must be of letters"),
        ({"path": ["x.tif"], "slide": ["CON"]}, sl.DataError, "Slide name 'CON' cannot name a file"),
        ({"path": ["x.tif"], "slide": ["x."]}, sl.DataError, "Slide name 'x.' cannot name a file"),
        ({"path": ["x.tif"], "slide": ["ü" * 130]}, sl.DataError, "at most 200 bytes"),
        ({"path": ["y/aux.tif"]}, sl.DataError, r"Slide name \(of its file\) 'aux' cannot name a file"),
        (
            {"path": ["x.tif"], "status": ["dead"], "seconds": [1]},
            sl.DataError,
            "has column\\(s\\) 'status', 'seconds', which the result uses.*Rename them, e.g. 'label_status'",
        ),
        ({"path": ["x.tif"], "mpp": ["half"]}, sl.DataError, "`slide 'x'.mpp` must be a number, found 'half'"),
    ],
)
def test_manifests_that_are_refused(rows: dict, error: type, message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        sl.tl.embed_slides(pd.DataFrame(rows), ENCODER, tmp_path / "out", **SMALL)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "path;patient;mpp\nx.tif;p;0,25\n"),
        ("b.tsv", "path,patient,mpp\nx.tif,p,0.25\n"),
        ("c.txt", "path\tpatient\tmpp\nx.tif\tp\t0,25\n"),
    ],
)
def test_a_manifest_is_read_whatever_separates_its_columns(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    (slide,) = read_manifest(tmp_path / name)
    assert (slide.path.name, slide.patient, slide.mpp) == ("x.tif", "p", 0.25)


def test_a_manifest_may_have_one_column(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("path\nx.tif\n")
    with pytest.warns(sl.SealstWarning, match="1 of 1 slides failed"):
        sl.tl.embed_slides(tmp_path / "c.csv", ENCODER, tmp_path / "out", **SMALL, retries=0)


@pytest.mark.parametrize(("asked", "n_jobs"), [(None, 2), (5, 5), (-1, -1)])
def test_processes_of_this_machine_share_its_cores_for_reading(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int | None, n_jobs: int
) -> None:
    class Begun(Exception):
        pass

    def begun(job, **_):
        jobs.append(job)
        raise Begun

    jobs: list = []
    monkeypatch.setattr("sealst.tl._slides.slides.workers_for", begun)
    monkeypatch.setattr("sealst.tl._slides.workers.n_cores", lambda: 8)
    with sl.settings.override(n_jobs=asked):
        for n_workers in (4, 0):
            with pytest.raises(Begun):
                sl.tl.embed_slides(
                    folder / "manifest.csv", ENCODER, tmp_path / "out", **SMALL, n_workers=n_workers, overwrite=True
                )
    # A process that works alone decides for itself.
    assert [job.n_jobs for job in jobs] == [n_jobs, asked]


def test_arguments_that_are_refused(folder: Path, model, tmp_path: Path) -> None:
    def call(given, **options):
        return sl.tl.embed_slides(folder / "manifest.csv", given, tmp_path / "out", **options)

    with pytest.raises(sl.DataError, match="`crop_um` is 100, but the model was trained on 64"):
        call(model, crop_um=100)
    with pytest.raises(sl.DataError, match="'frozen', 'net': only a SEAL model offers that"):
        call(ENCODER, **SMALL, frozen=True, net={"a": ["b"]})
    with pytest.raises(sl.DataError, match="pass `expression=True` too"):
        call(model, genes=["EPCAM"])
    with pytest.raises(sl.PanelError, match="nogene"):
        call(model, expression=True, genes=["nogene"])
    with pytest.raises(sl.DataError, match="not both"):
        call(model, n_workers=1, scheduler="tcp://nowhere:1")
    with pytest.raises(sl.DataError, match="`retries` must be a whole number"):
        call(model, retries=-1)
    with pytest.raises(TypeError, match="`model` must be a SealModel, its folder, or the name of an encoder"):
        call(3)
    with pytest.raises(sl.DataError, match="must be a DataFrame|No manifest at"):
        sl.tl.embed_slides(folder / "none.csv", model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    with pytest.raises(sl.DataError, match="holds something else"):
        call(model)


def test_settings_of_the_call_are_part_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's own settings do not count; and a precision is part of what a finished slide is."""
    frame = pd.DataFrame({"path": [str(write_slide(tmp_path / "a.tif", size=400))], "patient": ["p"]})
    jobs, seen = [], []
    workers, features = _slides.workers_for, _slide_work.features_of
    monkeypatch.setattr(_slides, "workers_for", lambda job, **how: jobs.append(job) or workers(job, **how))
    with sl.settings.override(precision="bf16-mixed", n_jobs=1, device="cpu"):
        sl.tl.embed_slides(frame, ENCODER, tmp_path / "out", **SMALL | {"device": None})
    job = pickle.loads(pickle.dumps(jobs[0]))
    assert job.model.device == "cpu"
    # As on a worker, whose process has settings of its own.
    monkeypatch.setattr(
        _slide_work,
        "features_of",
        lambda *args: seen.append((sl.settings.precision, sl.settings.n_jobs)) or features(*args),
    )
    slide = _slides.read_manifest(frame)[0]
    (job.out / "slides" / "a.h5ad").unlink()
    digest = _slide_work.plan(slide, job)["digest"]
    with monkeypatch.context() as patch:
        # Crops that are resized in another way are other crops.
        patch.setattr(_slide_job, "RESAMPLING", -1)
        assert job.digest(slide) != digest
    _slide_work.embed_range(slide, job, 0, digest)
    assert seen == [("bf16-mixed", 1)]
    assert sl.settings.precision == "auto"
    with pytest.raises(sl.DataError, match=r"\(precision 'bf16-mixed', now 'auto'\)"):
        sl.tl.embed_slides(frame, ENCODER, tmp_path / "out", **SMALL)
    stated = json.loads((tmp_path / "out" / "run.json").read_text())
    del stated["settings"]["precision"]
    (tmp_path / "out" / "run.json").write_text(json.dumps(stated))
    with pytest.raises(sl.DataError, match=r"\(precision not noted, now 'auto'\).*overwrite=True"):
        sl.tl.embed_slides(frame, ENCODER, tmp_path / "out", **SMALL)


def test_the_device_of_a_model_in_memory_is_that_of_the_workers(model) -> None:
    with sl.settings.override(device="cuda"):
        assert opened(model, pool=None, pretrained=True, device=None)[1].device == "cpu"


def test_a_result_is_a_manifest(tmp_path: Path) -> None:
    """The columns of an earlier run are taken for what they are."""
    frame = pd.DataFrame({"path": [str(write_slide(tmp_path / "a.tif", size=400))], "patient": ["p"], "grade": [1]})
    found = sl.tl.embed_slides(frame, ENCODER, tmp_path / "out", **SMALL)
    again = sl.tl.embed_slides(found, ENCODER, tmp_path / "out", **SMALL)
    pd.testing.assert_frame_equal(found, again)


def test_patients_default_to_slides_with_a_warning(folder: Path, tmp_path: Path) -> None:
    frame = pd.DataFrame({"path": [str(folder / "a.tif")]})
    with pytest.warns(sl.SealstWarning, match="does not name the patient of every slide"):
        found = sl.tl.embed_slides(frame, ENCODER, tmp_path / "out", **SMALL)
    assert list(found["patient"]) == ["a"]
