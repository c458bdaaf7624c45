"""Paths that were given stay what they are when the working folder changes."""

from __future__ import annotations

import numpy as np
import pytest

import sealst as sl


@pytest.fixture
def tables(ready):
    rng = np.random.default_rng(0)
    tables = [ready(section=name, patient=name, seed=i).tables["table"] for i, name in enumerate("ab")]
    for table in tables:
        table.obsm["X_seal"] = rng.normal(size=(table.n_obs, 8)).astype(np.float32)
        crops = table.uns["sealst"]["crops"]
        entry = {"model": "1f2e3d4c5b6a7988", "modality": "image", "crop_um": 64.0, "crops": crops}
        table.uns["sealst"] = dict(table.uns["sealst"]) | {"embed": {"X_seal": entry}}
    return tables


def test_an_index_bags_and_a_collection_are_found_from_elsewhere(ready, tables, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    index = sl.tl.build_index(tables, "index")
    opened = sl.tl.SealIndex.load("index")
    bags = sl.io.read_bags({"a": tables[0], "b": tables[1]}, key="X_seal")
    sl.io.write_trident(bags, "trident")
    read = sl.io.read_bags("trident")
    (tmp_path / "cohort").mkdir()
    ready(section="c").write(tmp_path / "cohort" / "c.zarr")
    collection = sl.io.read_collection("cohort")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_allclose(np.asarray(read[0].features), bags[0].features, atol=1e-6)
    assert collection[0].tables["table"].n_obs == 36
    assert opened.delete(where={"section": "a"}) == 36
    assert index.delete(where={"section": "b"}) == 36
