"""Crops with values on them, as QuPath opens them."""

from __future__ import annotations

import json

import geopandas
import numpy as np
import pandas as pd
import pytest

import sealst as sl


@pytest.fixture
def section():
    sdata = sl.datasets.synthetic(size_um=800, mpp=1.0, n_genes=200)
    sl.pp.pair_crops(sdata, crop_um=64, crop_px=32)
    table = sdata.tables["table"]
    rng = np.random.default_rng(0)
    values = rng.random((table.n_obs, 2)).astype(np.float32)
    values[1, 0] = np.nan
    table.obsm["seal_expression"] = pd.DataFrame(values, index=table.obs_names, columns=["ERBB2", "CD3E"])
    table.obs["seal_similarity"] = rng.random(table.n_obs)
    asked = {"hits": list(table.obs_names[[5, 3, 7]]), "regions": ["P1_S1_spots"] * 2 + ["elsewhere"]}
    asked |= {"sections": ["P1_S1"] * 2 + ["other"], "similarities": [0.9, 0.8, 0.7]}
    table.uns["sealst"]["retrieve"] = {"seal_similarity": asked}
    table.obs["kind"] = pd.Categorical(np.where(np.arange(table.n_obs) % 2, "tumour | a", None))
    return sdata


def test_what_is_read_back_is_what_was_written(section, tmp_path):
    table = section.tables["table"]
    path = sl.io.write_geojson(
        section, tmp_path / "s.geojson", genes=["CD3E", "ERBB2"], obs_keys="seal_similarity", class_key="kind"
    )
    found = geopandas.read_file(path).set_index("name")
    rows = np.flatnonzero(table.obs["crop_ok"])
    assert list(found.index) == list(table.obs_names[rows])
    squares = next(v for k, v in section.shapes.items() if k.endswith("_crops"))
    wanted = squares.loc[table.obs["spot_id"].to_numpy()[rows]].bounds.to_numpy()
    np.testing.assert_allclose(found.bounds.to_numpy(), wanted, atol=1e-3)
    written = json.loads(path.read_text())["features"]
    for row, feature in zip(rows, written, strict=True):
        measured = feature["properties"]["measurements"]
        expected = table.obsm["seal_expression"].iloc[row].dropna().to_dict()
        expected["seal_similarity"] = table.obs["seal_similarity"].iloc[row]
        assert measured == pytest.approx(expected, abs=1e-7)
        label = feature["properties"].get("classification")
        assert label == ({"name": "tumour | a"} if row % 2 else None)
    assert len({feature["id"] for feature in written}) == len(rows)
    assert {feature["properties"]["objectType"] for feature in written} == {"tile"}


def test_hits_alone(section, tmp_path):
    path = sl.io.write_geojson(section, tmp_path / "h.json", obs_keys="seal_similarity", hits_key="seal_similarity")
    found = {f["properties"]["name"]: f["properties"]["measurements"] for f in json.loads(path.read_text())["features"]}
    table = section.tables["table"]
    # The third hit is of another region.
    assert {name: values["rank"] for name, values in found.items()} == {table.obs_names[3]: 2, table.obs_names[5]: 1}
    assert found[table.obs_names[3]]["seal_similarity"] == table.obs["seal_similarity"].iloc[3]


def test_names_of_squares_are_the_same_in_every_file(section, tmp_path):
    files = [sl.io.write_geojson(section, tmp_path / f"{i}.json", genes="ERBB2") for i in (1, 2)]
    assert files[0].read_text() == files[1].read_text()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({}, sl.DataError, "pass `genes=`, `obs_keys=`, `class_key=` or `hits_key=`"),
        ({"genes": "ERBB3"}, sl.MissingKeyError, "Did you mean 'ERBB2'"),
        ({"obs_keys": "seal_similarty"}, sl.MissingKeyError, "Did you mean 'seal_similarity'"),
        ({"obs_keys": ["seal_similarity", "seal_similarity"]}, sl.DataError, "Two measurements would be called"),
        ({"obs_keys": "kind"}, sl.DataError, "categories go into `class_key=`"),
        ({"class_key": "seal_similarity"}, sl.DataError, "they go into `obs_keys=`"),
        ({"hits_key": "X_seal"}, sl.OrderError, "Run `sl.tl.retrieve"),
        ({"genes": "ERBB2", "key": "other"}, sl.OrderError, "Run `sl.tl.predict"),
    ],
)
def test_wrong_calls_write_nothing(section, tmp_path, options, error, text):
    with pytest.raises(error, match=text):
        sl.io.write_geojson(section, tmp_path / "s.geojson", **options)
    assert not list(tmp_path.iterdir())


def test_files_are_not_replaced_unless_asked(section, tmp_path):
    path = sl.io.write_geojson(section, tmp_path / "s.geojson", genes="ERBB2")
    with pytest.raises(sl.DataError, match="overwrite=True"):
        sl.io.write_geojson(section, path, genes="CD3E")
    sl.io.write_geojson(section, path, genes="CD3E", overwrite=True)
    assert "CD3E" in path.read_text()
    with pytest.raises(sl.DataError, match=r"must end in \.geojson"):
        sl.io.write_geojson(section, tmp_path / "s.csv", genes="CD3E")


def test_a_file_belongs_to_one_picture(section, tmp_path):
    two = sl.datasets.synthetic(2, size_um=600, mpp=1.0, n_genes=200)
    from spatialdata import concatenate

    joined = concatenate(two, concatenate_tables=True)
    sl.pp.pair_crops(joined, crop_um=64, crop_px=32)
    with pytest.raises(sl.DataError, match="name it with `region=`"):
        sl.io.write_geojson(joined, tmp_path / "s.geojson", obs_keys="truth_nuclei")
    path = sl.io.write_geojson(joined, tmp_path / "s.geojson", obs_keys="truth_nuclei", region="P2_S1_spots")
    own = joined.tables["table"].obs["section"] == "P2_S1"
    assert len(json.loads(path.read_text())["features"]) == int((own & joined.tables["table"].obs["crop_ok"]).sum())
