"""Retrieval over an index, from a reference, and of pathways."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData

import sealst as sl
from sealst import _section
from sealst._errors import DataError, MissingKeyError, OrderError, PanelError
from sealst.models import SealModel
from sealst.tl import SealIndex, retrieve

NET = {"epithelium": ["EPCAM", "KRT8", "ABSENT"], "B/T": ["CD3E", "MS4A1"], "elsewhere": ["XIST"]}


@pytest.fixture
def index(sections: list[SpatialData], model: SealModel, made: dict[str, Any], tmp_path_factory: Any) -> SealIndex:
    if "index" not in made:
        made["index"] = sl.tl.build_index(sections, tmp_path_factory.mktemp("library") / "index", model=model)
    return made["index"]


def of_table(sdata: SpatialData, model: SealModel, query: Any, **options: Any) -> tuple[list[str], np.ndarray]:
    entry = (
        retrieve(sdata, model, query, copy=True, **options).tables["table"].uns["sealst"]["retrieve"]["seal_similarity"]
    )
    return entry["hits"].tolist(), entry["similarities"]


QUERIES: list[tuple[Any, dict[str, Any]]] = [
    ("EPCAM", {}),
    ("EPCAM", {"by": "embedding"}),
    (["CD3E", "MS4A1"], {"n_std": 4}),
    ({"KRT8": 1, "VIM": -2}, {"suppress_um": 150}),
    ({"KRT8": 1, "VIM": -2}, {"suppress_um": 150, "by": "embedding"}),
    ("B/T", {"net": NET}),
    ("ACTB", {"reference": pd.Series(np.linspace(0.3, 5, 8), index=("EPCAM", "KRT8", "VIM", "COL1A1", "CD3E", "MS4A1",
                                                                     "ERBB2", "ACTB"))}),
    (pd.Series(np.linspace(5, 0.3, 8), index=("EPCAM", "KRT8", "VIM", "COL1A1", "CD3E", "MS4A1", "ERBB2", "ACTB")), {}),
    (pd.Series(np.linspace(5, 0.3, 8), index=("EPCAM", "KRT8", "VIM", "COL1A1", "CD3E", "MS4A1", "ERBB2", "ACTB")),
     {"suppress_um": 120}),
    ("b_2x3", {"kind": "spot"}),
    ("b_2x3", {"kind": "spot", "suppress_um": 200}),
    (np.full((32, 32, 3), 120, dtype=np.uint8), {}),
]  # fmt: skip


@pytest.mark.parametrize(("query", "options"), QUERIES, ids=range(len(QUERIES)))
def test_one_section_of_an_index_gives_what_its_table_gives(
    sections: list[SpatialData], index: SealIndex, model: SealModel, query: Any, options: dict[str, Any]
) -> None:
    names, similarity = of_table(sections[1], model, query, n_hits=12, **options)
    hits = retrieve(index, model, query, n_hits=12, where={"section": "b"}, **options)
    np.testing.assert_allclose(hits["similarity"], similarity, atol=2e-5)
    assert hits["obs_name"].tolist() == names
    assert hits["rank"].tolist() == list(range(1, len(names) + 1))


def test_hits_over_the_library(sections: list[SpatialData], index: SealIndex, model: SealModel) -> None:
    hits = retrieve(index, model, ["EPCAM", "KRT8"], n_hits=72)
    assert set(hits["query"]) == {"EPCAM, KRT8"}
    assert set(hits["patient"]) == {"p1", "p2"}
    for sdata, name in zip(sections, "ab", strict=True):
        mine = hits[hits["section"] == name]
        assert mine["obs_name"].tolist() == of_table(sdata, model, ["EPCAM", "KRT8"], n_hits=36)[0]
    # Parts of a section keep the mean of the whole.
    some = index.metadata["obs_name"].iloc[:5].tolist()
    part = retrieve(index, model, ["EPCAM", "KRT8"], where={"obs_name": some})
    whole = hits.set_index("obs_name")["similarity"]
    np.testing.assert_allclose(part["similarity"], whole[part["obs_name"]])
    assert not set(retrieve(index, model, "b_2x3", kind="spot", n_hits=100)["obs_name"]) & {"b_2x3"}


def test_after_deleting_and_compacting(sections: list[SpatialData], model: SealModel, tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="needs the extra `index`")
    index = sl.tl.build_index(sections, tmp_path / "i", kind="hnsw", model=model)
    before = retrieve(index, model, "VIM", n_hits=30, where={"section": "b"})
    index.delete(where={"section": "a"})
    index.delete(where={"obs_name": before["obs_name"].iloc[0]})
    index.compact()
    after = retrieve(index, model, "VIM", n_hits=29)
    pd.testing.assert_frame_equal(
        after.drop(columns="rank"), before.iloc[1:].reset_index(drop=True).drop(columns="rank"), check_categorical=False
    )


def test_a_collection_becomes_an_index(
    ready: Callable[..., SpatialData], model: SealModel, sections: list[SpatialData], index: SealIndex, tmp_path: Path
) -> None:
    stores = sl.io.Collection(sections).write(tmp_path / "stores")
    found = sl.tl.build_index(sl.io.read_collection(tmp_path / "stores"), tmp_path / "i", model=model)
    pd.testing.assert_frame_equal(found.metadata, index.metadata, check_categorical=False)
    assert stores.names == found.sections
    pd.testing.assert_frame_equal(retrieve(found, model, "VIM"), retrieve(index, model, "VIM"), check_categorical=False)


# -- reference --------------------------------------------------------------------------------------------------------
def test_reference_by_hand(sections: list[SpatialData], model: SealModel) -> None:
    table = sections[0].tables["table"].copy()
    high = np.arange(table.n_obs) % 3 == 0
    table.obs["high"], table.obs["label"] = high, np.where(high, "x", "y")
    result = retrieve(table, model, "VIM", n_std=3, reference="high", copy=True)
    start = _section.expression(table, model.panel, np.flatnonzero(high)).mean(axis=0)
    end = start.copy()
    gene = list(model.panel.genes).index("VIM")
    end[gene] += 3 * model.panel.std[gene]
    z = model.embed_genes(np.stack([start, end])).astype(float)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    x = table.obsm["X_seal"].astype(float)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x -= x.mean(axis=0)
    similarity = x @ (z[1] - z[0]) / np.linalg.norm(x, axis=1) / np.linalg.norm(z[1] - z[0])
    np.testing.assert_allclose(result.obs["seal_similarity"], similarity, atol=1e-4)
    assert result.uns["sealst"]["retrieve"]["seal_similarity"]["reference"] == "high"
    profile = pd.Series(np.asarray(start).ravel(), index=model.panel.genes, name="mine")
    forms: list[Any] = [high, pd.Series(high, index=table.obs_names), {"label": "x"}, {"label": ["x"]}, profile]
    for form in forms:
        again = retrieve(table, model, "VIM", n_std=3, reference=form, copy=True)
        np.testing.assert_allclose(again.obs["seal_similarity"], similarity, atol=1e-4)
    assert again.uns["sealst"]["retrieve"]["seal_similarity"]["reference"] == "mine"
    plain = retrieve(table, model, "VIM", n_std=3, copy=True)
    assert "reference" not in plain.uns["sealst"]["retrieve"]["seal_similarity"]
    mean = pd.Series(model.panel.mean, index=model.panel.genes)
    same = retrieve(table, model, "VIM", n_std=3, reference=mean, copy=True)
    np.testing.assert_allclose(same.obs["seal_similarity"], plain.obs["seal_similarity"], atol=1e-5)


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("nothing", MissingKeyError, "'nothing' not found in `.obs`.*names a boolean column"),
        ("patient", DataError, r"must choose spots by True and False, \(36,\) bool, found"),
        ({"patient": "p9"}, MissingKeyError, "`reference`: no spot has patient 'p9'; found: 'p1'"),
        (np.zeros(36, dtype=bool), DataError, "`reference` chooses no spot"),
        (np.ones(7, dtype=bool), DataError, r"found bool \(7,\)"),
        (pd.Series([True] * 36), DataError, "must have the table's `.obs_names` as its index"),
        (pd.Series({"EPCAM": 3.0, "VIM": -1.0}), DataError, "holds 1 negative, infinite or missing"),
    ],
    ids=range(7),
)
def test_bad_references(
    sections: list[SpatialData], model: SealModel, reference: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        retrieve(sections[0], model, "VIM", reference=reference)


# -- pathways ---------------------------------------------------------------------------------------------------------
def test_a_pathway_is_the_signature_of_its_weights(
    sections: list[SpatialData], model: SealModel, tmp_path: Path
) -> None:
    net = pd.DataFrame({"source": "s", "target": ["EPCAM", "vim", "NONE"], "weight": [2.0, -1.0, 5.0]})
    net.to_csv(tmp_path / "net.csv", index=False)
    signature = of_table(sections[0], model, {"EPCAM": 2, "VIM": -1})
    for form in (net, str(tmp_path / "net.csv")):
        found = of_table(sections[0], model, "s", net=form)
        assert found[0] == signature[0]
        np.testing.assert_allclose(found[1], signature[1])
    entry = (
        retrieve(sections[0], model, "epithelium", net=NET, copy=True)
        .tables["table"]
        .uns["sealst"]["retrieve"]["seal_similarity"]
    )
    assert (entry["query"], entry["kind"], entry["set_size"]) == ("epithelium", "pathway", 3)
    assert entry["genes"].tolist() == ["EPCAM", "KRT8"]
    gene = of_table(sections[0], model, "VIM", net=NET, kind="gene")
    assert gene[0] == of_table(sections[0], model, "VIM")[0]


def test_bad_pathways(sections: list[SpatialData], model: SealModel) -> None:
    with pytest.raises(
        MissingKeyError, match="'epitelium' is none of the 3 gene sets of `net`; near names: 'epithelium'"
    ):
        retrieve(sections[0], model, "epitelium", net=NET)
    with pytest.raises(PanelError, match="None of the 1 genes of 'elsewhere' is in the model's panel of 8"):
        retrieve(sections[0], model, "elsewhere", net=NET)
    few = {"few": ["EPCAM", *(f"X{i}" for i in range(6))], "half": ["EPCAM", "X1"]}
    with pytest.raises(PanelError, match=r"Only 1 of the 7 genes of 'few' .*: 'EPCAM'\. As in .*`query=\['EPCAM'\]`"):
        retrieve(sections[0], model, "few", net=few)
    assert retrieve(sections[0], model, "half", net=few, copy=True) is not None
    with pytest.raises(DataError, match="`kind='pathway'` needs gene sets: pass `net=`"):
        retrieve(sections[0], model, "epithelium", kind="pathway")
    with pytest.raises(DataError, match="must be one name of a gene set of `net`, found list"):
        retrieve(sections[0], model, ["epithelium"], kind="pathway", net=NET)


# -- refusals ---------------------------------------------------------------------------------------------------------
def test_what_an_index_cannot_answer(
    sections: list[SpatialData], index: SealIndex, model: SealModel, ready: Callable[..., SpatialData], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="An index holds no expression: `reference` must be a Series"):
        retrieve(index, model, "VIM", reference={"patient": "p1"})
    with pytest.raises(DataError, match="`region` and `copy` are for tables"):
        retrieve(index, model, "VIM", copy=True)
    with pytest.raises(DataError, match="`where` filters an index; of a table name `region=`"):
        retrieve(sections[0], model, "VIM", where={"patient": "p1"})
    with pytest.raises(MissingKeyError, match="'b_99' not found in the index's `obs_name`"):
        retrieve(index, model, "b_99", kind="spot")
    with pytest.raises(PanelError, match="'b_2x3' is no gene of the panel but the name of a spot"):
        retrieve(index, model, "b_2x3")
    tables = [sdata.tables["table"].copy() for sdata in sections]
    for table in tables:
        table.uns["sealst"]["embed"]["X_seal"]["model"] = "other"
    tables[1].obs_names = tables[0].obs_names
    other = sl.tl.build_index(tables, tmp_path / "other")
    with pytest.raises(OrderError, match=rf"was made with 'other', this model is '{model.fingerprint}'. Embed the"):
        retrieve(other, model, "VIM")
    with pytest.raises(DataError, match=r"'a_2x3' is a spot of 2 sections: 'a', 'b'"):
        other.spot("a_2x3")
    sl.pp.pair_crops(moved := ready(section="m"), crop_um=64, crop_px=32)
    sl.tl.embed(moved, model)
    sl.pp.pair_crops(moved, crop_um=70, crop_px=32)
    with pytest.raises(OrderError, match="Section 'm': .*was made from other crops of 'm_spots'"):
        index.add(moved, model=model)
