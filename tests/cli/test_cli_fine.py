"""Maps and cells, as a pipeline asks for them."""

from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pytest
import spatialdata
from click.testing import CliRunner
from spatialdata.models import ShapesModel
from spatialdata.transformations import Identity

import sealst as sl
from sealst.cli._main import cli
from sealst.tl._fine import cells

BINS = ("--resolution-um", 20)


def answer(*arguments):
    done = CliRunner().invoke(cli, [*map(str, arguments), "--json"])
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def refused(*arguments):
    done = CliRunner().invoke(cli, [*map(str, arguments)])
    assert done.exit_code == 3
    return done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two sections with cells, and a model that knows spots alone."""
    root = tmp_path_factory.mktemp("fine")
    drawn = answer(
        "synthetic", "--out", root / "data", "--n-sections", 2, "--size-um", 700, "--mpp", 1, "--n-genes", 150
    )
    answer("prepare", drawn["manifest"], "--out", root / "sections", "--crop-um", 112, "--crop-px", 112)
    for name in ("P1_S1", "P2_S1"):
        sdata = spatialdata.read_zarr(root / "sections" / f"{name}.zarr")
        xy = np.random.default_rng(0).uniform(50, 650, (30, 2))
        sdata.shapes["cells"] = ShapesModel.parse(xy, geometry=0, radius=5, transformations={"global": Identity()})
        sdata.write_element("cells")
    (root / "finetune.yaml").write_text(
        "encoder: sealst-tiny\nn_genes: 100\ngene_encoder: {hidden: [16]}\ninclude: [ERBB2, COL1A1]\n"
        "params: {epochs: 1, views: 1, batch_size: 16, cache: none}\n"
    )
    answer("finetune", root / "sections", "--config", root / "finetune.yaml", "--out", root / "run")
    return root


@pytest.fixture(scope="module")
def taught(folder):
    found = answer("fit-local", folder / "sections", "--model", folder / "run", "--out", folder / "fine", "--epochs", 2)
    assert found["model"] == str(folder / "fine")
    return folder / "fine"


def test_what_is_learned_is_in_the_new_folder(folder, taught):
    assert sl.models.load(taught).local is not None
    assert sl.models.load(folder / "run" / "model").local is None


def test_patients_are_held_out_from_what_is_learned(folder, tmp_path):
    drawn = answer(
        "synthetic", "--out", tmp_path / "data", "--n-sections", 3, "--size-um", 700, "--mpp", 1, "--n-genes", 150
    )
    answer("prepare", drawn["manifest"], "--out", tmp_path / "all", "--crop-um", 112, "--crop-px", 112)
    run = ["fit-local", folder / "sections", "--model", folder / "run", "--epochs", 2]
    found = answer(*run, "--held-out", tmp_path / "all" / "P3_S1.zarr", "--out", tmp_path / "known")
    assert "unseen patients" in found["reliability"]
    assert sl.models.load(tmp_path / "known").local.reliability.patients == ("P3",)
    assert "P2" in refused(*run, "--held-out", folder / "sections" / "P2_S1.zarr", "--out", tmp_path / "leak")
    assert not (tmp_path / "leak").exists()


def test_maps_stay_in_the_stores(folder, taught):
    store = folder / "sections/P1_S1.zarr"
    found = answer("map", store, "--model", taught, "--genes", "ERBB2,COL1A1", *BINS)
    assert found["sections"][0]["image"] == "P1_S1_he_expression"
    assert found["sections"][0]["n_rows"] == 35
    image = spatialdata.read_zarr(store).images["P1_S1_he_expression"]
    assert image.coords["c"].values.tolist() == ["ERBB2", "COL1A1"]
    assert [path.name for path in (folder / "sections").iterdir() if "map" in path.name] == []
    # And again, in its place.
    again = answer("map", store, "--model", taught, "--genes", "ERBB2", "--resolution-um", 50)
    assert again["sections"][0]["n_genes"] == 1
    assert spatialdata.read_zarr(store).images["P1_S1_he_expression"].shape == (1, 14, 14)


def test_cells_go_into_a_file(folder, taught, monkeypatch):
    passes, bands = [], cells.bands
    monkeypatch.setattr(cells, "bands", lambda *a, **k: passes.append(1) or bands(*a, **k))
    out = folder / "cells.h5ad"
    call = (
        "cells",
        folder / "sections/P2_S1.zarr",
        "--at",
        "cells",
        "--model",
        taught,
        "--genes",
        "ERBB2",
        "--out",
        out,
    )
    (found,) = answer(*call)["sections"]
    assert (found["n_cells"], found["n_embedded"], found["dim"]) == (30, 30, 256)
    # Embeddings and expression are of one pass.
    assert len(passes) == 1
    table = ad.read_h5ad(out)
    assert table.obsm["X_seal"].shape == (30, 256)
    assert list(table.obsm["seal_expression"]) == ["ERBB2"]
    # The store is as it was.
    assert list(spatialdata.read_zarr(folder / "sections/P2_S1.zarr").tables) == ["table"]
    assert "--overwrite" in refused(*call)


def test_cells_stay_in_the_stores(folder, taught):
    answer("cells", folder / "sections", "--at", "cells", "--model", folder / "run")
    for name in ("P1_S1", "P2_S1"):
        table = spatialdata.read_zarr(folder / "sections" / f"{name}.zarr").tables["cells_table"]
        assert table.obsm["X_seal"].shape == (30, 256)
        assert "seal_expression" not in table.obsm


def test_a_model_that_knows_spots_alone_is_refused(folder):
    told = refused("map", folder / "sections/P1_S1.zarr", "--model", folder / "run", *("--genes", "ERBB2"), *BINS)
    assert "fit_local" in told
    told = refused("cells", folder / "sections/P1_S1.zarr", "--model", folder / "run", "--at", "nuclei")
    assert "'nuclei'" in told
