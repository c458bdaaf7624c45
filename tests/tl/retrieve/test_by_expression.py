"""Expression compared with what is predicted of the crops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from spatialdata import SpatialData

import sealst as sl
from sealst._errors import DataError, OrderError, SealstWarning
from sealst.models import SealModel
from sealst.tl import retrieve


@pytest.fixture
def older(model: SealModel, tmp_path: Path) -> SealModel:
    """The same model as an earlier version would have made it, without programs."""
    from sealst.models._seal.readout import Readout

    model.save(tmp_path / "m")
    found = sl.models.load(tmp_path / "m")
    plain = []
    for name in found.fitted:
        one = found.readout_of(name)
        facts = {k: v for k, v in one.facts.items() if k != "programs"}
        plain.append(Readout.of(one.weight.numpy().T, one.bias.numpy(), facts))
    found.use_readouts(plain)
    return found


def predicted(sdata: SpatialData, model: SealModel) -> np.ndarray:
    """Predictions less their mean, in the order of the panel."""
    values = sdata.tables["table"].obsm["seal_expression"][list(model.panel.genes)].to_numpy().astype(float)
    # None was cut off at 0, which would not be a sum.
    assert (values > 0).all()
    return values - values.mean(axis=0)


def unit(model: SealModel, gene: str) -> tuple[int, float]:
    """Column of a gene, and its deviation."""
    column = list(model.panel.genes).index(gene)
    return column, float(model.panel.std[column])


def stored(data: Any) -> dict[str, Any]:
    table = data.tables["table"] if isinstance(data, SpatialData) else data
    return table.uns["sealst"]["retrieve"]["seal_similarity"]


def test_a_gene_is_read_out_of_the_prediction(sections: list[SpatialData], model: SealModel) -> None:
    found = retrieve(sections[0], model, "EPCAM", copy=True)
    similarity = found.tables["table"].obs["seal_similarity"].to_numpy()
    column, std = unit(model, "EPCAM")
    expected = predicted(sections[0], model)[:, column] / std
    np.testing.assert_allclose(similarity, expected, atol=1e-5)
    assert similarity.std() > 0.01
    entry = stored(found)
    assert (entry["by"], entry["readout"]) == ("expression", model.search_readout)
    assert "n_std" not in entry


def test_a_signature_is_the_weighted_sum_of_its_genes(sections: list[SpatialData], model: SealModel) -> None:
    found = retrieve(sections[1], model, {"KRT8": 3, "VIM": -4}, copy=True).tables["table"]
    units = predicted(sections[1], model) / np.asarray(model.panel.std)
    up, down = (unit(model, gene)[0] for gene in ("KRT8", "VIM"))
    np.testing.assert_allclose(found.obs["seal_similarity"], 0.6 * units[:, up] - 0.8 * units[:, down], atol=1e-5)
    ranks = found.obs["seal_similarity"].rank(ascending=False)
    np.testing.assert_array_equal(found.obs["seal_similarity_rank"], ranks)


def test_a_profile_is_compared_in_programs(sections: list[SpatialData], model: SealModel) -> None:
    table = sections[0].tables["table"]
    measured = table[:, list(model.panel.genes)].layers[model.panel.layer].toarray().astype(float)
    programs = model.programs_of(model.search_readout)
    image = programs.of_predictions(predicted(sections[0], model))
    for reference, start in ((None, np.asarray(model.panel.mean)), ({"section": "a"}, measured.mean(axis=0))):
        query = programs.of_profiles((measured[7] - start)[None])[0]
        expected = image @ query / np.linalg.norm(image, axis=1) / np.linalg.norm(query)
        profile = pd.Series(measured[7], index=model.panel.genes)
        found = retrieve(sections[0], model, profile, reference=reference, copy=True).tables["table"]
        np.testing.assert_allclose(found.obs["seal_similarity"], expected, atol=1e-4)
        assert stored(found).get("reference", "") == ("" if reference is None else "section: a")


def test_a_gene_that_a_profile_lacks_says_nothing(sections: list[SpatialData], model: SealModel) -> None:
    mean = pd.Series(np.asarray(model.panel.mean, dtype=float), index=model.panel.genes)
    profile = mean + np.linspace(0.1, 0.5, len(model.panel.genes))
    lacking = retrieve(sections[0], model, profile.drop("VIM"), copy=True).tables["table"]
    at_mean = profile.copy()
    at_mean["VIM"] = mean["VIM"]
    same = retrieve(sections[0], model, at_mean, copy=True).tables["table"]
    np.testing.assert_allclose(lacking.obs["seal_similarity"], same.obs["seal_similarity"], atol=1e-5)
    with pytest.raises(DataError, match="does not deviate"):
        retrieve(sections[0], model, profile, reference=profile)


def test_embeddings_are_compared_where_that_is_asked(sections: list[SpatialData], model: SealModel) -> None:
    ways = [{"by": "embedding"}, {"n_std": 10}, {"by": "embedding", "n_std": 10}]
    found = [retrieve(sections[0], model, "EPCAM", copy=True, **one) for one in ways]
    assert {stored(one)["by"] for one in found} == {"embedding"}
    for one in found[1:]:
        pd.testing.assert_series_equal(
            one.tables["table"].obs["seal_similarity"], found[0].tables["table"].obs["seal_similarity"]
        )
    spot = retrieve(sections[0], model, "a_2x3", kind="spot", copy=True)
    assert stored(spot)["by"] == "embedding"


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        ("EPCAM", {"by": "pixels"}, "by.*expression.*embedding.*pixels"),
        ("EPCAM", {"by": "expression", "n_std": 3}, "`n_std` belongs to `by='embedding'`"),
        ("EPCAM", {"by": "expression", "reference": {"section": "a"}}, "`reference` belongs to `by='embedding'`"),
        ("a_2x3", {"by": "expression", "kind": "spot"}, "query of kind 'spot' has no expression"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    sections: list[SpatialData], model: SealModel, query: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        retrieve(sections[0], model, query, **options)
    assert "retrieve" not in sections[0].tables["table"].uns["sealst"]


def test_a_model_of_an_earlier_version_compares_embeddings(
    ready: Callable[..., SpatialData], older: SealModel, tmp_path: Path
) -> None:
    assert older.search_readout is None
    sdata = ready(section="a", patient="p1")
    sl.tl.embed(sdata, older)
    retrieve(sdata, older, "EPCAM")
    assert stored(sdata)["by"] == "embedding"
    with pytest.raises(DataError, match="needs predictions: a model whose readout has programs"):
        retrieve(sdata, older, "EPCAM", by="expression")
    older.save(tmp_path / "again")
    assert sl.models.load(tmp_path / "again").search_readout is None


def test_programs_are_kept_with_the_model(sections: list[SpatialData], model: SealModel, tmp_path: Path) -> None:
    model.save(tmp_path / "m")
    again = sl.models.load(tmp_path / "m")
    assert again.fingerprint == model.fingerprint
    a, b = (
        retrieve(sections[0], one, "VIM", copy=True).tables["table"].obs["seal_similarity"] for one in (model, again)
    )
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_an_index_without_predictions_says_what_it_compares(
    sections: list[SpatialData], model: SealModel, tmp_path: Path
) -> None:
    index = sl.tl.build_index(sections, tmp_path / "i")
    assert index.readout is None
    with pytest.warns(SealstWarning, match=r"holds no predictions.*build_index\(sections, path, model=model\)"):
        found = retrieve(index, model, "EPCAM", where={"section": "a"})
    by_embedding = retrieve(sections[0], model, "EPCAM", by="embedding", copy=True)
    assert found["obs_name"].tolist() == stored(by_embedding)["hits"].tolist()
    with pytest.raises(DataError, match="of an index that it was built with"):
        retrieve(index, model, "EPCAM", by="expression")


def test_an_index_of_predictions_grows_and_shrinks(
    sections: list[SpatialData], model: SealModel, tmp_path: Path
) -> None:
    index = sl.tl.build_index(sections[0], tmp_path / "i", model=model)
    assert index.readout == model.search_readout
    with pytest.raises(OrderError, match="model=model"):
        index.add(sections[1])
    index.add(sections[1], model=model)
    index.delete(where={"section": "a"})
    index.compact()
    found = retrieve(sl.tl.SealIndex.load(tmp_path / "i"), model, "EPCAM", n_hits=36)
    table = retrieve(sections[1], model, "EPCAM", n_hits=36, copy=True)
    assert found["obs_name"].tolist() == stored(table)["hits"].tolist()
    np.testing.assert_allclose(found["similarity"], stored(table)["similarities"], atol=1e-5)


def test_sections_of_a_joined_table_are_compared_each_by_itself(sections: list[SpatialData], model: SealModel) -> None:
    joined = ad.concat([sdata.tables["table"] for sdata in sections], uns_merge="unique")
    for query in ("EPCAM", pd.Series(np.linspace(0.5, 3, 8), index=model.panel.genes)):
        found = retrieve(joined, model, query, copy=True).obs["seal_similarity"]
        for sdata in sections:
            alone = retrieve(sdata, model, query, copy=True).tables["table"].obs["seal_similarity"]
            np.testing.assert_allclose(found[alone.index], alone, atol=1e-9)


@pytest.mark.parametrize("modality", ["cells", "gene"])
def test_only_embeddings_of_crops_are_read(sections: list[SpatialData], model: SealModel, modality: str) -> None:
    table = sections[0].tables["table"].copy()
    table.uns["sealst"]["embed"]["X_seal"]["modality"] = modality
    assert stored(retrieve(table, model, "EPCAM", copy=True))["by"] == "embedding"
    with pytest.raises(DataError, match="needs predictions"):
        retrieve(table, model, "EPCAM", by="expression")


def test_tiles_without_expression_are_read_by_the_crop_alone(sections: list[SpatialData], model: SealModel) -> None:
    table = sections[0].tables["table"]
    tiles = ad.AnnData(obs=table.obs.copy(), obsm=dict(table.obsm), uns=table.uns)
    found = retrieve(tiles, model, "EPCAM", copy=True)
    assert stored(found)["readout"] == model.crop_search_readout == "ridge"
    crops = model.predict_expression(np.asarray(table.obsm["X_seal"]), readout="ridge").astype(float)
    column, std = unit(model, "EPCAM")
    expected = (crops - crops.mean(axis=0))[:, column] / std
    np.testing.assert_allclose(found.obs["seal_similarity"], expected, atol=1e-5)


def without_places(sdata: SpatialData, rows: Any) -> ad.AnnData:
    """The table alone, some of whose spots lie nowhere."""
    table = sdata.tables["table"].copy()
    table.obsm["spatial"] = np.asarray(table.obsm["spatial"], dtype=float)
    table.obsm["spatial"][rows] = np.nan
    return table


@pytest.mark.parametrize("rows", [slice(None), [3]], ids=["all", "one"])
def test_where_places_are_not_known_the_crop_alone_is_read(
    sections: list[SpatialData], model: SealModel, tmp_path: Path, rows: Any
) -> None:
    table = without_places(sections[0], rows)
    found = retrieve(table, model, "EPCAM", copy=True)
    assert stored(found)["readout"] == "ridge"
    assert found.obs["seal_similarity"].notna().all()
    index = sl.tl.build_index([table, sections[1]], tmp_path / "i", model=model)
    assert index.readout == "ridge"
    hits = retrieve(index, model, "EPCAM", where={"section": "a"})
    assert hits["obs_name"].tolist() == stored(found)["hits"].tolist()
    with pytest.raises(DataError, match=r"Predictions by 'surroundings'.*section 'a'.*Begin with this section"):
        sl.tl.build_index([sections[1], table], tmp_path / "other", model=model)


def test_regions_in_turn_are_compared_by_one_readout(sections: list[SpatialData], model: SealModel) -> None:
    joined = ad.concat([without_places(sections[0], [3]), sections[1].tables["table"]], uns_merge="unique")
    at_once, in_turn = joined.copy(), joined.copy()
    retrieve(at_once, model, "VIM")
    for region in ("a_spots", "b_spots"):
        retrieve(in_turn, model, "VIM", region=region)
    np.testing.assert_allclose(in_turn.obs["seal_similarity"], at_once.obs["seal_similarity"], atol=1e-9)
    assert at_once.obs["seal_similarity"].notna().all()


def test_positions_may_have_a_third_column(sections: list[SpatialData], model: SealModel) -> None:
    table = sections[0].tables["table"].copy()
    table.obsm["spatial"] = np.column_stack([table.obsm["spatial"], np.zeros(table.n_obs)])
    for options in ({}, {"kind": "spot"}):
        query = "a_2x3" if options else "EPCAM"
        flat = retrieve(sections[0].tables["table"], model, query, suppress_um=150, copy=True, **options)
        found = retrieve(table, model, query, suppress_um=150, copy=True, **options)
        assert stored(found)["hits"].tolist() == stored(flat)["hits"].tolist()


def test_a_gene_that_a_reference_lacks_says_nothing(sections: list[SpatialData], model: SealModel) -> None:
    genes = list(model.panel.genes)
    profile = pd.Series(np.linspace(0.5, 3, len(genes)), index=genes)
    reference = pd.Series(np.linspace(2, 1, len(genes)), index=genes)
    lacking = retrieve(sections[0], model, profile, reference=reference.drop("VIM"), copy=True).tables["table"]
    alike = profile.copy()
    alike["VIM"] = reference["VIM"]
    same = retrieve(sections[0], model, alike, reference=reference, copy=True).tables["table"]
    np.testing.assert_allclose(lacking.obs["seal_similarity"], same.obs["seal_similarity"], atol=1e-5)


def test_an_index_is_read_into_memory_too(sections: list[SpatialData], model: SealModel, tmp_path: Path) -> None:
    index = sl.tl.build_index(sections, tmp_path / "i", model=model)
    assert "predictions by 'surroundings'" in repr(index)
    again = sl.tl.SealIndex.load(tmp_path / "i", mmap=False)
    pd.testing.assert_frame_equal(
        retrieve(again, model, "KRT8", suppress_um=120), retrieve(index, model, "KRT8", suppress_um=120)
    )
    (next((tmp_path / "i").glob("programs-*.npy"))).write_bytes(b"cut")
    with pytest.raises(sl.CheckpointError, match="damaged"):
        sl.tl.SealIndex.load(tmp_path / "i")


@pytest.mark.parametrize("options", [{"by": "embedding"}, {"n_std": 5}])
def test_who_asks_by_embedding_is_not_warned(
    sections: list[SpatialData], model: SealModel, tmp_path: Path, options: dict[str, Any], recwarn: Any
) -> None:
    index = sl.tl.build_index(sections, tmp_path / "i")
    retrieve(index, model, "EPCAM", **options)
    assert not [one for one in recwarn if "holds no predictions" in str(one.message)]


def test_a_model_with_heads_is_asked_by_expression(
    ready: Callable[..., SpatialData], finetune: Any, tmp_path: Path
) -> None:
    train = [ready(section="a", patient="p1"), ready(section="b", patient="p2", seed=1)]
    model = finetune(train, projection="linear")
    for sdata in train:
        sl.tl.embed(sdata, model)
    index = sl.tl.build_index(train, tmp_path / "i", model=model)
    hits = retrieve(index, model, "EPCAM", where={"section": "b"})
    table = retrieve(train[1], model, "EPCAM", copy=True)
    assert stored(table)["by"] == "expression"
    assert hits["obs_name"].tolist() == stored(table)["hits"].tolist()


@pytest.mark.parametrize(
    ("by", "label"), [("expression", "above the section's mean (SD)"), ("embedding", "similarity")]
)
def test_the_figure_names_the_unit(sections: list[SpatialData], model: SealModel, by: str, label: str) -> None:
    asked = retrieve(sections[0], model, "EPCAM", by=by, copy=True)
    figure = sl.pl.retrieval(asked, n_crops=2, show=False)
    assert label in {text.get_text() for text in figure.findobj(Text)}
