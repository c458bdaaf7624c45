from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import spatialdata as sd
from anndata import AnnData

import sealst as sl

GENES = ["EPCAM", "VIM", "CD3E", "ERBB2", "KRT8"]
HEX = np.array([[c + 0.5 * (r % 2), r * np.sqrt(3) / 2] for r in range(5) for c in range(6)]) * 100 + 60
SQUARE = np.array([[c, r] for r in range(5) for c in range(6)]) * 100.0 + 60


def section(xy: np.ndarray = HEX, *, name: str = "s1", seed: int = 0, counts: np.ndarray | None = None):
    rng = np.random.default_rng(seed)
    values = rng.poisson(3.0, (len(xy), len(GENES))) if counts is None else counts
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    return sl.io.from_arrays(image, values, xy, genes=GENES, mpp=1.0, spot_um=55, section=name, thumbnail=False)


def table_of(sdata: sd.SpatialData) -> AnnData:
    return sdata.tables["table"]


def dense(table: AnnData, layer: str) -> np.ndarray:
    return table.layers[layer].toarray()


def log_cp10k(counts: np.ndarray, target_sum: float = 1e4) -> np.ndarray:
    total = counts.sum(1, keepdims=True)
    return np.log1p(counts / np.where(total > 0, total, 1) * target_sum)


def context_of(counts: np.ndarray, xy: np.ndarray, weight: float = 0.5) -> np.ndarray:
    """Independent reference: neighbours by distance on an exact grid of pitch 100."""
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=-1)
    near = (distance > 0) & (distance < 110)
    out = counts.astype(float)
    for i in np.flatnonzero(near.any(1)):
        out[i] = (1 - weight) * counts[i] + weight * counts[near[i]].mean(0)
    return log_cp10k(out)


@pytest.mark.parametrize("xy", [HEX, SQUARE], ids=["hex", "square"])
def test_layers_hold_what_they_promise(xy: np.ndarray) -> None:
    sdata = section(xy)
    before = table_of(sdata).X.copy()
    assert sl.pp.normalize(sdata) is None
    table = table_of(sdata)
    counts = before.toarray()
    for name, expected in (
        ("counts", counts),
        ("lognorm", log_cp10k(counts)),
        ("context", context_of(counts, xy)),
    ):
        layer = table.layers[name]
        assert sp.issparse(layer)
        assert layer.format == "csr"
        assert layer.dtype == np.float32
        np.testing.assert_allclose(layer.toarray(), expected, rtol=1e-5)
    assert (before != table.X).nnz == 0


def test_provenance_is_recorded_and_survives_writing(tmp_path) -> None:
    sdata = section()
    sl.pp.normalize(sdata, context_weight=0.25, target_sum=5e3)
    sdata.write(tmp_path / "s.zarr")
    back = sd.read_zarr(tmp_path / "s.zarr").tables["table"]
    stored = back.uns["sealst"]["normalize"]
    assert (float(stored["target_sum"]), float(stored["context_weight"]), str(stored["source"])) == (5e3, 0.25, "X")
    assert [list(stored[k]) for k in ("sections", "grids")] == [["s1"], ["hex"]]
    assert 3.5 < stored["mean_neighbours"][0] < 6
    np.testing.assert_array_equal(dense(back, "context"), dense(table_of(sdata), "context"))


def test_weight_and_target_sum_are_used() -> None:
    sdata = section()
    sl.pp.normalize(sdata, context_weight=0.0, target_sum=100)
    table = table_of(sdata)
    np.testing.assert_allclose(dense(table, "context"), dense(table, "lognorm"), rtol=1e-6)
    np.testing.assert_allclose(np.expm1(dense(table, "lognorm")).sum(1), 100, rtol=1e-5)


def test_constant_expression_stays_constant() -> None:
    xy = np.delete(HEX, [7, 14, 15], axis=0)
    sdata = section(xy, counts=np.tile([4, 0, 2, 7, 1], (len(xy), 1)))
    sl.pp.normalize(sdata)
    table = table_of(sdata)
    np.testing.assert_allclose(dense(table, "context"), dense(table, "lognorm"), rtol=1e-6)


def test_sections_never_mix() -> None:
    a, b = section(name="a", seed=1), section(name="b", seed=2)
    joint = sd.concatenate([a, b], concatenate_tables=True)
    # Rows of the two sections alternate, on the same positions.
    table = joint.tables.pop("table")
    order = np.arange(table.n_obs).reshape(2, -1).T.ravel()
    joint.tables["table"] = table[order].copy()
    sl.pp.normalize(joint)
    for one in (a, b):
        sl.pp.normalize(one)
        expected = table_of(one)
        mixed = table_of(joint)[expected.obs_names]
        np.testing.assert_allclose(dense(mixed, "context"), dense(expected, "context"), rtol=1e-6)
    assert list(table_of(joint).uns["sealst"]["normalize"]["sections"]) == ["a", "b"]


def test_sections_of_a_bare_anndata_never_mix() -> None:
    tables = []
    for name in ("a", "b"):
        table = table_of(section(name=name, seed=ord(name))).copy()
        del table.uns["spatialdata_attrs"]
        tables.append(table)
    joint = ad.concat(tables)
    sl.pp.normalize(joint)
    for table in tables:
        sl.pp.normalize(table)
        np.testing.assert_allclose(dense(joint[table.obs_names], "context"), dense(table, "context"), rtol=1e-6)


def test_regions_can_be_normalised_one_after_the_other() -> None:
    joint = sd.concatenate([section(name="a", seed=1), section(name="b", seed=2)], concatenate_tables=True)
    whole = sl.pp.normalize(joint, copy=True).tables["table"]
    sl.pp.normalize(joint, region="b_spots")
    table = table_of(joint)
    first = table.obs["section"].to_numpy() == "a"
    assert dense(table, "lognorm")[first].max() == 0
    np.testing.assert_array_equal(dense(table, "context")[~first], dense(whole, "context")[~first])

    with pytest.raises(sl.DataError, match="'b' were normalised with target_sum=10000.0, now found target_sum=100.0"):
        sl.pp.normalize(joint, region="a_spots", target_sum=100)
    sl.pp.normalize(joint, region="b_spots")
    sl.pp.normalize(joint, region="a_spots")
    np.testing.assert_array_equal(dense(table, "lognorm"), dense(whole, "lognorm"))
    np.testing.assert_array_equal(dense(table, "context"), dense(whole, "context"))
    assert sorted(table.uns["sealst"]["normalize"]["sections"]) == ["a", "b"]


def test_jittered_square_spots_keep_their_four_neighbours() -> None:
    xy = SQUARE + np.random.default_rng(0).normal(0, 6, SQUARE.shape)
    jittered, exact = section(xy), section(SQUARE)
    sl.pp.normalize(jittered)
    sl.pp.normalize(exact)
    np.testing.assert_array_equal(dense(table_of(jittered), "context"), dense(table_of(exact), "context"))


def test_isolated_spots_keep_their_own_counts() -> None:
    xy = np.vstack([HEX, [[5000.0, 5000.0]]])
    sdata = section(xy)
    sl.pp.normalize(sdata)
    table = table_of(sdata)
    np.testing.assert_allclose(dense(table, "context")[-1], dense(table, "lognorm")[-1], rtol=1e-6)


def test_spots_without_counts_are_zero_and_reported() -> None:
    counts = np.random.default_rng(0).poisson(3.0, (len(HEX), len(GENES)))
    counts[[3, 8]] = 0
    sdata = section(counts=counts)
    with pytest.warns(sl.SealstWarning, match=r"2 of 30 spots have no counts.*'s1_3', 's1_8'"):
        sl.pp.normalize(sdata)
    table = table_of(sdata)
    assert dense(table, "lognorm")[[3, 8]].max() == 0
    assert np.isfinite(dense(table, "context")).all()
    assert (dense(table, "context")[3] > 0).any()


def test_counts_can_come_from_a_layer() -> None:
    table = table_of(section()).copy()
    reference = sl.pp.normalize(table, copy=True)
    table.layers["counts"] = table.X.toarray().astype(int)
    table.X = np.log1p(table.X)
    sl.pp.normalize(table, layer="counts")
    np.testing.assert_array_equal(dense(table, "lognorm"), dense(reference, "lognorm"))
    assert table.layers["counts"].dtype == np.float32
    assert table.uns["sealst"]["normalize"]["source"] == "counts"


def test_copy_leaves_the_input_alone() -> None:
    sdata = section()
    result = sl.pp.normalize(sdata, copy=True).tables["table"]
    assert set(result.layers) - {None} == {"counts", "lognorm", "context"}
    assert not table_of(sdata).layers
    assert "sealst" not in table_of(sdata).uns


def test_own_layers_are_replaced_and_those_of_others_are_not() -> None:
    sdata = section()
    sl.pp.normalize(sdata)
    first = dense(table_of(sdata), "lognorm")
    sl.pp.normalize(sdata, target_sum=100, context=False)
    assert set(table_of(sdata).layers) - {None} == {"counts", "lognorm"}
    assert dense(table_of(sdata), "lognorm").max() < first.max()
    # Normalised values are no counts, whoever made them.
    table_of(sdata).X = table_of(sdata).layers["lognorm"]
    with pytest.raises(sl.DataError, match="does not hold raw counts"):
        sl.pp.normalize(sdata)
    sl.pp.normalize(sdata, layer="counts")
    np.testing.assert_array_equal(dense(table_of(sdata), "lognorm"), first)
    mine = table_of(section()).copy()
    mine.layers["lognorm"] = mine.X * 0
    with pytest.raises(sl.DataError, match=r"holds 'lognorm', which `sl\.pp\.normalize` did not write.*\['lognorm'\]"):
        sl.pp.normalize(mine)
    assert not mine.layers["lognorm"].toarray().any()


def test_foreign_counts_are_not_overwritten() -> None:
    table = table_of(section()).copy()
    table.layers["counts"] = table.X * 2
    with pytest.raises(sl.DataError, match="holds 'counts', which .* did not write.*name it with `layer=`"):
        sl.pp.normalize(table)


def test_without_context_positions_are_not_needed() -> None:
    table = table_of(section()).copy()
    del table.obsm["spatial"]
    sl.pp.normalize(table, context=False)
    assert set(table.layers) - {None} == {"counts", "lognorm"}


def test_positions_fall_back_to_the_shapes() -> None:
    sdata, reference = section(), section()
    del table_of(sdata).obsm["spatial"]
    sl.pp.normalize(sdata)
    sl.pp.normalize(reference)
    np.testing.assert_array_equal(dense(table_of(sdata), "context"), dense(table_of(reference), "context"))


def test_a_named_grid_is_used_where_none_is_clear() -> None:
    line = np.column_stack([np.arange(8) * 100.0, np.full(8, 60.0)])
    sdata = section(line)
    with pytest.raises(sl.DataError, match="Section 's1': The grid of the 8 spots is not clear.*grid='hex'"):
        sl.pp.normalize(sdata)
    assert not table_of(sdata).layers
    sl.pp.normalize(sdata, grid="square")
    np.testing.assert_allclose(
        dense(table_of(sdata), "context"), context_of(table_of(sdata).X.toarray(), line), rtol=1e-5
    )


# --- bad input --------------------------------------------------------------------------------------------------------


def _negative(table: AnnData) -> None:
    table.X[0, 0] = -1


def _normalised(table: AnnData) -> None:
    table.X = np.log1p(table.X)


def _duplicate(table: AnnData) -> None:
    table.var_names = ["VIM", "VIM", "CD3E", "ERBB2", "KRT8"]


def _unnamed(table: AnnData) -> None:
    table.var_names = ["VIM", "", "CD3E", "ERBB2", "KRT8"]


def _no_positions(table: AnnData) -> None:
    del table.obsm["spatial"]


def _nan_positions(table: AnnData) -> None:
    table.obsm["spatial"][2, 0] = np.nan


def _stacked_positions(table: AnnData) -> None:
    table.obsm["spatial"][1] = table.obsm["spatial"][0]


def _no_matrix(table: AnnData) -> None:
    table.X = None


def _all_zero(table: AnnData) -> None:
    table.X = table.X * 0


@pytest.mark.parametrize(
    ("damage", "error", "match"),
    [
        (_negative, sl.DataError, r"`table\.X` holds negative values .*`layer=`"),
        (_normalised, sl.DataError, r"`table\.X` does not hold raw counts"),
        (_all_zero, sl.DataError, r"`table\.X` holds no counts"),
        (_no_matrix, sl.DataError, r"`table\.X` is empty"),
        (_duplicate, sl.DataError, r"Duplicate gene names in `table\.var_names`: 'VIM'"),
        (_unnamed, sl.DataError, r"1 empty gene names in `table\.var_names`"),
        (_no_positions, sl.MissingKeyError, r"'spatial' not found in `table\.obsm`.*context=False"),
        (_nan_positions, sl.DataError, r"NaN or infinite positions for 1 spots of section 's1'"),
        (_stacked_positions, sl.DataError, r"Section 's1': 2 of 30 spots share their position"),
    ],
)
def test_unusable_tables_are_refused_and_left_alone(damage, error, match) -> None:
    table = table_of(section()).copy()
    damage(table)
    with pytest.raises(error, match=match):
        sl.pp.normalize(table)
    assert not table.layers
    assert "sealst" not in table.uns


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"table_key": "spots"}, sl.MissingKeyError, "'spots' not found in `sdata.tables`; found: 'table'"),
        ({"region": "s2_spots"}, sl.MissingKeyError, "'s2_spots' not found in the table's regions"),
        ({"layer": "raw"}, sl.MissingKeyError, "'raw' not found in `table.layers`; found: none"),
        ({"grid": "triangle"}, sl.DataError, "`grid` must be one of 'auto', 'hex', 'square', found 'triangle'"),
        ({"context_weight": 1.5}, sl.DataError, "`context_weight` must lie between 0 and 1, found 1.5"),
        ({"target_sum": 0}, sl.DataError, "`target_sum` must be a positive number, found 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, match) -> None:
    with pytest.raises(error, match=match):
        sl.pp.normalize(section(), **arguments)


def test_region_of_a_bare_anndata_names_a_section() -> None:
    table = AnnData(
        table_of(section()).X, obs=pd.DataFrame({"section": ["a"] * 15 + ["b"] * 15}), var=table_of(section()).var
    )
    table.obsm["spatial"] = HEX
    with pytest.raises(sl.MissingKeyError, match="'c' not found in the table's sections; found: 'a', 'b'"):
        sl.pp.normalize(table, region="c")
    sl.pp.normalize(table, region="b")
    assert dense(table, "lognorm")[:15].max() == 0
    assert (dense(table, "lognorm")[15:].max(1) > 0).all()


def test_one_spot_is_refused() -> None:
    with pytest.raises(sl.DataError, match=r"1 spot\(s\); at least 2 are needed"):
        sl.pp.normalize(section(HEX[:1]))
    with pytest.raises(sl.DataError, match="Section 's1': A lattice needs at least 2 spots, found 1"):
        sl.pp.normalize(table_of(section(HEX))[:1].copy())


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="Expected a SpatialData .*found ndarray"):
        sl.pp.normalize(np.ones((3, 3)))
