"""An index of embedded sections: what is found, filters, changes, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from sealst._core.search.queries import cosine
from sealst._errors import CheckpointError, DataError, MissingKeyError, OrderError, SealstWarning
from sealst.tl import SealIndex, build_index

FAISS = pytest.mark.skipif(find_spec("faiss") is None, reason="needs the extra `index`")
APPROXIMATE = ("flat", "ivf", "hnsw")
COLUMNS = ["section", "obs_name", "patient", "organ", "technology", "x_um", "y_um"]


def section(name: str, *, n: int = 60, seed: int = 0, dim: int = 12, **facts: Any) -> ad.AnnData:
    """Table of a section with embeddings, of which row 3 is missing; spots 50 µm apart in a row of ten."""
    rng = np.random.default_rng(seed)
    crops = {"crop_um": 64.0, "crop_px": 32, "um_per_unit": 0.5, "shapes_key": "x"}
    crops |= {"image_key": "he", "coordinate_system": "global", "min_inside": 0.5}
    made_by = {"model": facts.pop("model", "m1"), "modality": "image", "crops": {f"{name}_spots": dict(crops)}}
    obs = pd.DataFrame(
        {"section": name, "patient": "p1", "organ": "breast", "technology": "toy"} | facts, index=range(n)
    )
    obs.index = [f"{name}_{i}" for i in range(n)]
    table = ad.AnnData(np.zeros((n, 1), dtype=np.float32), obs=obs)
    table.obsm["X_seal"] = (rng.standard_normal((n, dim)) + 0.5).astype(np.float32)
    table.obsm["X_seal"][3] = np.nan
    table.obsm["spatial"] = np.column_stack([np.arange(n) % 10, np.arange(n) // 10]) * 100.0
    table.uns["sealst"] = {"crops": {f"{name}_spots": crops}, "embed": {"X_seal": made_by}}
    return table


@pytest.fixture
def tables() -> list[ad.AnnData]:
    return [
        section("a"),
        section("b", seed=1, patient="p2", organ="lung"),
        section("c", seed=2, patient="p2", organ="skin", n=40),
    ]


@pytest.fixture(params=["exact", *(pytest.param(kind, marks=FAISS) for kind in APPROXIMATE)])
def index(request: Any, tables: list[ad.AnnData], tmp_path: Path) -> SealIndex:
    # Lists and graphs that look at nearly all, so that what they find is what there is.
    params = {"ivf": {"n_probe": 30}, "hnsw": {"ef_search": 200}}.get(request.param)
    return build_index(tables, tmp_path / "index", kind=request.param, params=params)


def everything(tables: list[ad.AnnData]) -> tuple[np.ndarray, pd.DataFrame]:
    z = np.concatenate([t.obsm["X_seal"] for t in tables])
    facts = pd.concat([t.obs.assign(obs_name=t.obs_names) for t in tables], ignore_index=True)
    known = np.isfinite(z).all(axis=1)
    return z[known], facts[known].reset_index(drop=True)


def expected(query: np.ndarray, tables: list[ad.AnnData], choose: Callable[[pd.DataFrame], Any]) -> pd.Series:
    """Similarity by name of the spots that are chosen, best first."""
    z, facts = everything(tables)
    similarity = pd.Series(cosine(query, z), index=facts["obs_name"])
    return similarity[np.asarray(choose(facts))].sort_values(ascending=False, kind="stable")


# -- search -----------------------------------------------------------------------------------------------------------
def test_hits_are_the_most_similar_spots(index: SealIndex, tables: list[ad.AnnData]) -> None:
    queries = np.random.default_rng(5).standard_normal((4, 12)) * 7
    hits = index.search(queries, n_hits=9)
    assert list(hits) == ["query", "rank", "section", "obs_name", "similarity", *COLUMNS[2:]]
    assert hits["query"].tolist() == np.repeat(range(4), 9).tolist()
    for i, query in enumerate(queries):
        mine, best = hits[hits["query"] == i], expected(query, tables, lambda f: f["section"] != "")
        assert mine["obs_name"].tolist() == best.index[:9].tolist()
        np.testing.assert_allclose(mine["similarity"], best[:9], atol=1e-6)
        assert mine["rank"].tolist() == list(range(1, 10))


def test_an_embedding_finds_itself_and_its_facts(index: SealIndex, tables: list[ad.AnnData]) -> None:
    hit = index.search(tables[1].obsm["X_seal"][17], n_hits=1).iloc[0]
    assert (hit["obs_name"], hit["section"], hit["patient"], hit["organ"]) == ("b_17", "b", "p2", "lung")
    assert (hit["x_um"], hit["y_um"]) == (7 * 50, 1 * 50)
    assert hit["similarity"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("filters", "choose"),
    [
        ({"where": {"organ": "lung"}}, lambda f: f["organ"] == "lung"),
        ({"where": {"organ": ["lung", "skin"], "section": "c"}}, lambda f: f["section"] == "c"),
        ({"where": {"patient": "p2"}, "exclude": {"organ": ["skin"]}}, lambda f: f["section"] == "b"),
        ({"exclude": {"obs_name": ["a_0", "b_7"]}}, lambda f: ~f["obs_name"].isin(["a_0", "b_7"])),
        ({"where": {"x_um": [0.0, 50.0], "section": "a"}}, lambda f: f["obs_name"].str.fullmatch("a_.?[01]")),
    ],
    ids=range(5),
)
def test_filters(index: SealIndex, tables: list[ad.AnnData], filters: dict[str, Any], choose: Any) -> None:
    query = np.random.default_rng(6).standard_normal(12)
    best = expected(query, tables, choose)
    hits = index.search(query, n_hits=1000, **filters)
    assert hits["obs_name"].tolist() == best.index.tolist()
    hits = index.search(query, n_hits=5, **filters)
    assert hits["obs_name"].tolist() == best.index[:5].tolist()


@FAISS
def test_filters_of_an_approximate_index(tables: list[ad.AnnData], tmp_path: Path, monkeypatch: Any) -> None:
    # As with many vectors: a filtered search goes through faiss, and what it misses is looked for.
    monkeypatch.setattr("sealst.tl._retrieve.index_search._FEW", 0)
    query = np.random.default_rng(6).standard_normal((3, 12))
    for kind, params in (("flat", {}), ("ivf", {"n_probe": 1}), ("hnsw", {"ef_search": 1})):
        index = build_index(tables, tmp_path / kind, kind=kind, params=params)
        hits = index.search(query, n_hits=40, where={"section": "c"})
        assert hits["section"].eq("c").all()
        assert hits.groupby("query").size().tolist() == [39] * 3
        assert not hits.duplicated(["query", "obs_name"]).any()


def test_hits_keep_their_distance(index: SealIndex, tables: list[ad.AnnData]) -> None:
    queries = np.random.default_rng(7).standard_normal((2, 12))
    hits = index.search(queries, n_hits=500, suppress_um=120)
    for i, query in enumerate(queries):
        mine = hits[hits["query"] == i]
        left, best = [], expected(query, tables, lambda f: f["section"] != "")
        xy = {n: np.array([int(n[2:]) % 10, int(n[2:]) // 10]) * 50.0 for n in best.index}
        for name in best.index:
            if all(n[0] != name[0] or np.linalg.norm(xy[n] - xy[name]) >= 120 for n in left):
                left.append(name)
        assert mine["obs_name"].tolist() == left
    few = index.search(queries, n_hits=3, suppress_um=120)
    assert few[few["query"] == 1]["obs_name"].tolist() == left[:3]


def test_equal_spots_come_in_order(tables: list[ad.AnnData], tmp_path: Path) -> None:
    tables[0].obsm["X_seal"][[5, 9]] = tables[0].obsm["X_seal"][20]
    tables[2].obsm["X_seal"][0] = 3 * tables[0].obsm["X_seal"][20]
    hits = build_index(tables, tmp_path / "i").search(tables[0].obsm["X_seal"][20], n_hits=4)
    assert hits["obs_name"].tolist() == ["a_5", "a_9", "a_20", "c_0"]


# -- on disk ----------------------------------------------------------------------------------------------------------
def test_it_is_loaded_as_it_was_built(index: SealIndex) -> None:
    query = np.random.default_rng(8).standard_normal(12)
    for mmap in (True, False):
        again = SealIndex.load(index.path, mmap=mmap)
        assert repr(again) == repr(index)
        pd.testing.assert_frame_equal(again.search(query), index.search(query))
    assert len(index) == 157
    assert "SealIndex of 157 spots in 3 section(s), 12 dimensions, kind" in repr(index)
    assert index.sections == ["a", "b", "c"]
    assert list(index.metadata) == COLUMNS
    assert len(index.metadata) == 157
    assert "a_3" not in set(index.metadata["obs_name"])
    assert (index.model, index.dim) == ("m1", 12)


def test_changes(index: SealIndex, tables: list[ad.AnnData]) -> None:
    other = SealIndex.load(index.path)
    new = section("d", seed=9, organ="skin")
    index.add(new)
    assert index.search(new.obsm["X_seal"][8], n_hits=1)["obs_name"].tolist() == ["d_8"]
    assert index.delete(where={"organ": "skin"}) == 39 + 59
    assert index.delete(where={"section": "d"}) == 0
    assert (len(index), index.n_deleted, index.sections) == (118, 98, ["a", "b"])
    assert "98 deleted" in repr(index)
    everybody = index.search(new.obsm["X_seal"][8], n_hits=1000)
    assert set(everybody["section"]) == {"a", "b"}
    assert len(everybody) == 118
    assert len(index.metadata) == 118
    # An object that is behind changes what is there, not what it saw.
    other.add(section("d", seed=10))
    assert other.sections == ["a", "b", "d"]
    assert other.search(new.obsm["X_seal"][8], n_hits=1)["obs_name"].tolist() != ["d_8"]
    before = other.search(new.obsm["X_seal"][8], n_hits=30)
    other.compact()
    assert (other.n_deleted, len(other), other.sections) == (0, 177, ["a", "b", "d"])
    pd.testing.assert_frame_equal(SealIndex.load(index.path).search(new.obsm["X_seal"][8], n_hits=30), before)
    assert other.delete(where={"technology": "toy"}) == 177
    with pytest.raises(DataError, match="is empty: all its spots are deleted"):
        other.search(np.ones(12))
    with pytest.raises(DataError, match="Nothing is left in the index"):
        other.compact()


def test_further_columns(tables: list[ad.AnnData], tmp_path: Path) -> None:
    for i, table in enumerate(tables):
        table.obs["stage"] = pd.Categorical(["I" if i else "II"] * table.n_obs)
        table.obs["depth"] = np.arange(table.n_obs) + 100 * i
    index = build_index(tables[:2], tmp_path / "i", columns=["stage", "depth"])
    index.add(tables[2])
    hits = index.search(np.ones(12), n_hits=500, where={"stage": "I"})
    assert set(hits["section"]) == {"b", "c"}
    assert index.search(np.ones(12), where={"depth": 207})["obs_name"].tolist() == ["c_7"]
    wrong = section("d")
    with pytest.raises(MissingKeyError, match="`columns`: 'stage', 'depth' not found in `.obs` of section 'd'"):
        index.add(wrong)
    wrong.obs[["stage", "depth"]] = "deep"
    with pytest.raises(DataError, match="A column of section 'd' is of another type"):
        index.add(wrong)
    assert index.sections == SealIndex.load(index.path).sections == ["a", "b", "c"]


def test_overwrite(index: SealIndex, tables: list[ad.AnnData]) -> None:
    with pytest.raises(CheckpointError, match="holds an index already; pass `overwrite=True`"):
        build_index(tables, index.path)
    with pytest.raises(DataError, match="in the index already"):
        build_index([tables[0], tables[0]], index.path, overwrite=True)
    assert len(SealIndex.load(index.path)) == 157
    assert len(build_index(tables[:1], index.path, overwrite=True)) == 59
    assert index.search(np.ones(12), n_hits=1000)["section"].nunique() == 3


@FAISS
def test_auto_takes_faiss_for_many(tables: list[ad.AnnData], tmp_path: Path, monkeypatch: Any) -> None:
    assert build_index(tables, tmp_path / "few").kind == "exact"
    monkeypatch.setattr("sealst.tl._retrieve.index_write.AUTO_VECTORS", 100)
    assert build_index(tables, tmp_path / "many").kind == "ivf"
    index = SealIndex.load(tmp_path / "few")
    index.add(section("d"))
    assert index.kind == "exact"
    index.compact()
    assert index.kind == "ivf"
    # Without faiss.
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.warns(SealstWarning, match=r'as faiss is not installed. `pip install "sealst\[index\]"`'):
        assert build_index(tables, tmp_path / "without").kind == "exact"
    for kind in APPROXIMATE:
        with pytest.raises(DataError, match=r'needs faiss, which is not installed: `pip install "sealst\[index\]"`'):
            build_index(tables, tmp_path / kind, kind=kind)
    with pytest.raises(DataError, match="needs faiss"):
        SealIndex.load(tmp_path / "many")


# -- refusals ---------------------------------------------------------------------------------------------------------
def test_sections_that_do_not_belong(tables: list[ad.AnnData], tmp_path: Path) -> None:
    index, path = build_index(tables, tmp_path / "i"), tmp_path / "j"
    for call in (index.add, lambda one: build_index([*tables, one], path)):
        with pytest.raises(DataError, match="section 'd' differ from those of the index in model: 'm2', not 'm1'"):
            call(section("d", model="m2"))
        other_px = section("d")
        other_px.uns["sealst"]["embed"]["X_seal"]["crops"] = {"d_spots": {"crop_um": 64.0, "crop_px": 64}}
        other_px.uns["sealst"]["crops"]["d_spots"] |= {"crop_px": 64}
        with pytest.raises(DataError, match="differ from those of the index in crop_px: 64, not 32"):
            call(other_px)
        with pytest.raises(DataError, match=r"Section 'b' is in the index already.*index.delete\(where="):
            call(section("b"))
        with pytest.raises(DataError, match="section 'd' have 7 dimensions, those of the index 12"):
            call(section("d", dim=7))
        bare = section("d")
        del bare.obsm["X_seal"]
        with pytest.raises(OrderError, match=r"Section 'd': No embeddings: 'X_seal' not found.*sl.tl.embed"):
            call(bare)
        unknown = section("d")
        del unknown.uns["sealst"]["embed"]
        with pytest.raises(OrderError, match="Section 'd': .*made by an unknown model"):
            call(unknown)
        empty = section("d")
        empty.obsm["X_seal"][:] = np.nan
        with pytest.raises(DataError, match="No spot of section 'd' has an embedding"):
            call(empty)
    assert len(SealIndex.load(index.path)) == 157
    assert not [p for p in path.iterdir() if p.name != ".lock"]
    with pytest.raises(DataError, match="`sections` is empty"):
        build_index([], path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_hits": 0}, DataError, "`n_hits` must be a positive number"),
        ({"suppress_um": -1}, DataError, "`suppress_um` must be a distance in µm"),
        ({"where": {"tissue": "x"}}, MissingKeyError, "'tissue' not found in the index's metadata; found: 'section'"),
        ({"where": {"organ": ["lung", "x"]}}, DataError, "no spot has organ 'x'; found: 'breast', 'lung', 'skin'"),
        ({"where": "lung"}, TypeError, "`where` must map columns to values"),
        ({"where": {"organ": "lung", "section": "a"}}, DataError, "No spot of the index fits `where` and `exclude`"),
    ],
    ids=range(6),
)  # fmt: skip
def test_bad_searches(
    tables: list[ad.AnnData], tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    index = build_index(tables, tmp_path / "i")
    with pytest.raises(error, match=message):
        index.search(np.ones(12), **options)


def test_bad_queries_and_options(tables: list[ad.AnnData], tmp_path: Path) -> None:
    del tables[1].obsm["spatial"]
    index = build_index(tables, tmp_path / "i")
    with pytest.raises(DataError, match=r"`vectors` must be \(n_queries, 12\), found \(7,\)"):
        index.search(np.ones(7))
    with pytest.raises(DataError, match="must be finite and not all 0"):
        index.search(np.zeros(12))
    with pytest.raises(MissingKeyError, match=r"needs positions in µm, which section\(s\) 'b' lacked"):
        index.search(np.ones(12), suppress_um=10)
    assert len(index.search(np.ones(12), suppress_um=10, exclude={"section": "b"})) == 50
    with pytest.raises(DataError, match="`where` names no column"):
        index.delete(where={})
    with pytest.raises(DataError, match="`kind` must be one of 'auto', 'exact', 'flat', 'ivf', 'hnsw', found 'lsh'"):
        build_index(tables, tmp_path / "j", kind="lsh")
    with pytest.raises(DataError, match="`params` of kind 'ivf' has no 'lists'; known: 'n_lists', 'n_probe'"):
        build_index(tables, tmp_path / "j", kind="ivf", params={"lists": 3})
    with pytest.raises(DataError, match="`params` belong to one kind of index"):
        build_index(tables, tmp_path / "j", params={"n_lists": 3})
    with pytest.raises(DataError, match=r"`columns` must be a list of names, found 'stage'"):
        build_index(tables, tmp_path / "j", columns="stage")
