"""From drawn sections to hits, as a pipeline calls the commands; one small model for all tests."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import tifffile
from click.testing import CliRunner

import sealst as sl
from sealst.cli._main import cli

CROPS = ("--crop-um", 64, "--crop-px", 32)


def run(*arguments, code=0):
    """Call in this process; stdout and stderr apart."""
    done = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert done.exit_code == code, done.stderr
    return done


def answer(*arguments, code=0):
    return json.loads(run(*arguments, "--json", code=code).stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two drawn sections, prepared, and a model trained on the first."""
    root = tmp_path_factory.mktemp("pipeline")
    size = ("--size-um", 450, "--mpp", 3, "--pitch-um", 75, "--n-genes", 150)
    drawn = answer("synthetic", "--out", root / "data", "--n-sections", 2, *size)
    assert [one["section"] for one in drawn["sections"]] == ["P1_S1", "P2_S1"]
    made = answer("prepare", drawn["manifest"], "--out", root / "sections", *CROPS)
    assert [one["status"] for one in made["sections"]] == ["done", "done"]
    (root / "finetune.yaml").write_text(
        "encoder: vit_tiny_patch16_224\npretrained: false\nn_genes: 200\ngene_encoder: {hidden: [16]}\n"
        "include: [krt7, MUC1]\n"
        "params: {epochs: 9, views: 1, batch_size: 16, cache: none}\nseed: 3\n"
    )
    told = ("--config", root / "finetune.yaml", "--epochs", 1, "--n-genes", 100)
    trained = answer("finetune", root / "sections/P1_S1.zarr", *told, "--out", root / "run")
    assert trained["model"] == str(root / "run" / "model")
    return root


@pytest.fixture(scope="module")
def tables(folder):
    run("predict", folder / "sections/P2_S1.zarr", "--model", folder / "run", "--out", folder / "p2.h5ad")
    return folder / "p2.h5ad"


def test_prepared_sections_have_crops_names_and_layers(folder):
    table = sl.io.read(folder / "sections" / "P1_S1.zarr").tables["table"]
    assert {"counts", "lognorm", "context"} <= set(table.layers)
    assert "gene_original" in table.var
    assert table.obs["crop_ok"].all()
    assert json.loads(table.uns["sealst"]["prepare"]["options"])["crop_px"] == 32
    raw = sl.io.read(folder / "data" / "P1_S1.zarr").tables["table"]
    assert not set(raw.layers) - {None}, "the input stays as it is"


def test_markers_of_a_config_file_are_in_the_panel(folder):
    panel = (folder / "run" / "model" / "panel.tsv").read_text()
    assert panel.index("KRT7") < panel.index("MUC1") < panel.index("KRT8")
    run_again = ("finetune", folder / "sections/P1_S1.zarr", "--encoder", "vit_tiny_patch16_224", "--no-pretrained")
    both = ("--panel", folder / "run" / "model" / "panel.tsv", "--include", "KRT7,MUC1")
    assert "`include` adds genes" in run(*run_again, *both, "--out", folder / "no", code=3).stderr


def test_a_folder_with_a_model_in_a_subfolder_says_where_it_is(folder):
    store = folder / "sections/P2_S1.zarr"
    said = run("embed", store, "--model", folder, "--out", folder / "no.h5ad", code=3).stderr
    assert f"A model lies in {str(folder / 'run' / 'model')!r}." in said


def test_files_of_gene_sets_that_are_not_there(tables):
    said = run("pathways", tables, "--net", "nothere.gmt", code=3).stderr
    assert "No file 'nothere.gmt' with gene sets (looked for '/" in said
    assert "DataFrame" not in said


def test_a_table_is_checked_as_one(tables):
    (checked,) = answer("check", tables)["sections"]
    assert (checked["ok"], checked["format"]) == (True, "AnnData (anndata.read_h5ad)")
    assert "a table without a picture" in checked["problems"][-1]["text"]


def test_drawn_sections_come_with_a_next_step_that_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    size = ("--size-um", 450, "--mpp", 3, "--pitch-um", 75, "--n-genes", 150)
    said = run("synthetic", "--out", "sections", "--n-sections", 1, *size).stdout
    command = re.search(r"next: `sealst (.+)`", said).group(1).split()
    run(*command, *CROPS)


def test_flags_win_over_the_config_file(folder):
    facts = json.loads((folder / "run" / "run.json").read_text())["run"]
    assert facts["params"]["epochs"] == 1
    assert facts["params"]["batch_size"] == 16
    assert facts["seed"] == 3
    assert len(sl.models.load(folder / "run" / "model", device="cpu").panel) == 100


def test_what_is_there_is_not_overwritten(folder, tables):
    manifest = folder / "data" / "manifest.csv"
    for arguments in (
        ["synthetic", "--out", folder / "data"],
        ["prepare", manifest, "--out", folder / "sections"],
        ["finetune", folder / "sections", "--encoder", "x", "--out", folder / "run"],
        ["predict", folder / "sections/P2_S1.zarr", "--model", folder / "run", "--out", tables],
        ["export", "--model", folder / "run", "--out", folder / "run"],
    ):
        done = run(*arguments, code=3)
        assert done.stdout == ""
        assert "exists; name another --out, or pass --overwrite" in done.stderr
    both = run("prepare", manifest, "--out", "x", "--resume", "--overwrite", code=2)
    assert "Give one of --overwrite and --resume" in both.stderr


def test_resume_keeps_what_the_same_call_made(folder):
    again = answer("prepare", folder / "data/manifest.csv", "--out", folder / "sections", *CROPS, "--resume")
    assert [one["status"] for one in again["sections"]] == ["kept", "kept"]
    assert again["sections"][0]["n_genes"] == 150
    other = answer("prepare", folder / "data/manifest.csv", "--out", folder / "sections", "--resume", code=3)
    assert other["failed"] == ["P1_S1", "P2_S1"]
    assert "was not made by this call with these options" in other["sections"][0]["error"]


def test_a_broken_section_stops_no_other(folder, tmp_path):
    (tmp_path / "outs").mkdir()
    sdata = sl.io.read(folder / "data" / "P2_S1.zarr")
    del sdata.shapes["P2_S1_spots"]
    sdata.write(tmp_path / "broken.zarr")
    rows = ["path,section", "broken.zarr,broken", f"{folder / 'data' / 'P1_S1.zarr'},good"]
    (tmp_path / "m.csv").write_text("\n".join(rows))
    found = answer("prepare", tmp_path / "m.csv", "--out", tmp_path / "new", *CROPS, code=3)
    assert found["failed"] == ["broken"]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["good.zarr"]
    assert set(sl.io.read(tmp_path / "new" / "good.zarr").tables["table"].obs["section"]) == {"good"}


def test_predict_writes_tables_and_leaves_the_store(folder, tables):
    table = ad.read_h5ad(tables)
    assert table.obsm["seal_expression"].shape == (table.n_obs, 100)
    assert "seal_expression" not in sl.io.read(folder / "sections" / "P2_S1.zarr").tables["table"].obsm
    refused = run("predict", folder / "sections", "--model", folder / "run", "--out", folder / "one.h5ad", code=3)
    assert "is one file, but there are 2 sections; name a folder" in refused.stderr


def test_embed_saves_into_the_store(folder):
    found = answer("embed", folder / "sections/P1_S1.zarr", "--model", folder / "run", "--key-added", "X_mine")
    (one,) = found["sections"]
    assert (found["key"], one["dim"], one["n_embedded"]) == ("X_mine", 192, one["n_obs"])
    assert sl.io.read(one["path"]).tables["table"].obsm["X_mine"].shape == (one["n_obs"], 192)


def test_pathways_take_tables(folder, tables, tmp_path):
    net = folder / "data" / "programs.csv"
    found = answer("pathways", tables, "--net", net, "--tmin", 3, "--out", tmp_path / "scores.h5ad")
    (one,) = found["sections"]
    assert (one["section"], one["n_pathways"] + one["n_left_out"]) == ("P2_S1", 11)
    assert ad.read_h5ad(tmp_path / "scores.h5ad").obsm["seal_pathways"].shape[1] == one["n_pathways"]
    assert "seal_pathways" not in ad.read_h5ad(tables).obsm


def test_retrieve_prints_hits_and_writes_them(folder, tables, tmp_path):
    model = sl.models.load(folder / "run" / "model", device="cpu")
    gene = model.panel.genes[0]
    hits = tmp_path / "hits.csv"
    asked = ("retrieve", tables, "--model", folder / "run", "--n-hits", 3)
    found = answer(*asked, "--genes", gene, "--hits", hits, "--out", tmp_path / "r.h5ad")
    written = pd.read_csv(hits)
    assert list(written["obs_name"]) == [one["obs_name"] for one in found["hits"]]
    assert list(written["rank"]) == [1, 2, 3]
    obs = ad.read_h5ad(tmp_path / "r.h5ad").obs
    assert list(obs["seal_similarity"].nlargest(3).index) == list(written["obs_name"])
    spot = written["obs_name"][0]
    like = answer(*asked, "--spot", spot, "--no-save")["hits"]
    assert spot not in [one["obs_name"] for one in like]
    assert "seal_similarity" not in ad.read_h5ad(tables).obs
    neither = run(*asked, "--spot", spot, "--no-save", "--out", tmp_path / "no.h5ad", code=2).stderr
    assert "Give one of --out and --no-save" in neither
    assert "Give one of --genes" in run(*asked, code=2).stderr
    assert "belong together" in run(*asked, "--pathway", "stroma", code=2).stderr


def test_retrieve_from_an_index(folder, tables, tmp_path):
    table = ad.read_h5ad(tables)
    sl.tl.build_index(table, tmp_path / "index")
    asked = ("retrieve", tmp_path / "index", "--model", folder / "run", "--spot", table.obs_names[0])
    found = answer(*asked, "--n-hits", 2, "--where", "patient=P2")
    assert len(found["hits"]) == 2
    assert "An index has no tables" in run(*asked, "--out", tmp_path / "t", code=2).stderr


def test_an_index_is_built_and_asked(folder, tables, tmp_path):
    embedded = tmp_path / "tables"
    run("embed", folder / "sections", "--model", folder / "run", "--out", embedded)
    made = answer("index", embedded, "--out", tmp_path / "library", "--columns", "crop_ok", "--kind", "exact")
    assert made["sections"] == ["P1_S1", "P2_S1"]
    assert (made["kind"], made["n_obs"]) == ("exact", len(sl.tl.SealIndex.load(tmp_path / "library")))
    asked = ("retrieve", tmp_path / "library", "--model", folder / "run", "--where", "patient=P2", "--n-hits", 2)
    spot = ad.read_h5ad(tables).obs_names[0]
    found = answer(*asked, "--spot", spot)["hits"]
    assert [one["section"] for one in found] == ["P2_S1", "P2_S1"]
    assert "crop_ok" in found[0]
    again = ("index", embedded, "--out", tmp_path / "library")
    assert "pass --overwrite to replace it" in run(*again, code=3).stderr
    with_heads = answer(*again, "--overwrite", "--model", folder / "run")
    assert with_heads["model"] == made["model"]
    assert "belong to --model" in run(*again, "--overwrite", "--base", "b", code=2).stderr


def test_export_for_peft(folder, tmp_path):
    found = answer("export", "--model", folder / "run", "--format", "adapter", "--out", tmp_path / "lora")
    assert "adapter_model.safetensors" in found["files"]


def test_overwrite_trains_anew_and_resume_leaves_a_finished_run(folder, tmp_path):
    before = (folder / "run" / "model" / "config.json").read_bytes()
    told = ("--config", folder / "finetune.yaml", "--epochs", 1, "--n-genes", 100)
    again = answer("finetune", folder / "sections/P1_S1.zarr", *told, "--out", folder / "run", "--resume")
    assert (folder / "run" / "model" / "config.json").read_bytes() == before
    # What fails leaves the earlier run.
    run("finetune", folder / "sections/P1_S1.zarr", *told, "--out", folder / "run", "--overwrite", "--panel",
        folder / "finetune.yaml", code=3)  # fmt: skip
    assert (folder / "run" / "model" / "config.json").read_bytes() == before
    assert again["fingerprint"] == sl.models.load(folder / "run" / "model", device="cpu").fingerprint


def test_raw_files_and_missing_pieces_are_refused(folder, tmp_path):
    (tmp_path / "slides.csv").write_text("slide,path\na,a.svs\n")
    listed = run("embed", tmp_path / "slides.csv", "--model", folder / "run", code=2)
    # The command for slides takes over, which needs a folder to write to.
    assert "Missing option '--out'" in listed.stderr
    both = run("embed", folder / "sections", "--model", folder / "run", "--encoder", "uni", code=2)
    assert "Give one of --model and --encoder" in both.stderr
    table = run("embed", folder / "finetune.h5ad", "--encoder", "uni", code=2)
    assert "does not exist" in table.stderr
    # The folder of a run stands for its model, whose patients are then refused.
    leak = run("evaluate", folder / "sections", "--model", folder / "run", "--out", tmp_path / "e", code=3)
    assert "trained on patient(s)" in leak.stderr
    nothing = run("retrieve", folder / "sections/P2_S1.zarr", "--model", folder / "run", "--genes", "ERBB2", code=3)
    assert "tl.embed" in nothing.stderr


def test_a_real_section_goes_in_by_one_command(shared_dir, tmp_path):
    told = ("--option", f"coordinate_scale={2000 / 6954}", "--patient", "A", "--organ", "breast")
    told += ("--crop-px", 36, "--min-tissue", 0.15, "--threshold", "brightness_mean=1:", "--section", "a1")
    (one,) = answer("prepare", shared_dir / "data/her2st/A1", *told, "--out", tmp_path / "s")["sections"]
    assert (one["section"], one["n_obs"], one["patient"]) == ("a1", 346, ["A"])
    assert one["mpp"] == pytest.approx(3.19, rel=0.02)
    assert 0 < one["n_usable"] <= 346
    table = sl.io.read(tmp_path / "s" / "a1.zarr").tables["table"]
    assert {"tissue_fraction", "quality_brightness_mean"} <= set(table.obs)
    assert {"context", "lognorm"} <= set(table.layers)


def test_a_slide_without_spots_is_tiled(tmp_path):
    rng = np.random.default_rng(0)
    picture = np.full((240, 240, 3), 245, np.uint8)
    picture[60:180, 60:180] = rng.integers(60, 220, (120, 120, 3))
    tifffile.imwrite(tmp_path / "slide.tif", picture, photometric="rgb")
    told = ("--mpp", 4, "--crop-um", 80, "--crop-px", 32, "--min-tissue", 0.4, "--patient", "X")
    (one,) = answer("prepare", tmp_path / "slide.tif", *told, "--out", tmp_path / "slide.zarr")["sections"]
    assert one["n_genes"] == 0
    assert one["n_obs"] == one["n_usable"] == pytest.approx(36, abs=14)
    assert sl.io.read(tmp_path / "slide.zarr").tables["table"].obs["patient"].eq("X").all()
    assert (
        "does not state its physical scale"
        in run("prepare", tmp_path / "slide.tif", "--out", tmp_path / "x.zarr", code=3).stderr
    )


def test_encoders_and_info():
    assert {one["key"] for one in answer("encoders")} >= {"uni2-h", "conch"}
    assert answer("encoders", "--show", "uni2-h")["dim"] == 1536
    assert "'nothing' not found in the published encoders" in run("encoders", "--show", "nothing", code=3).stderr
    assert answer("info")["packages"]["torch"]


@pytest.mark.slow
def test_a_process_of_its_own_prints_json_alone(folder):
    # Slow because a new process imports torch.
    code = "import sys; sys.argv[0] = 'sealst'; from sealst.cli import main; main()"
    told = ["predict", str(folder / "sections/P2_S1.zarr"), "--model", str(folder / "run"), "--json"]
    told += ["--out", str(folder / "again.h5ad")]
    done = subprocess.run([sys.executable, "-c", code, *told], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sections"][0]["section"] == "P2_S1"
    assert "Wrote .obsm" in done.stderr
    assert subprocess.run([sys.executable, "-c", code, *told], capture_output=True).returncode == 3
