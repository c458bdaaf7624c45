from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import sealst as sl

SECTIONS, METHODS = ("A1", "B4", ""), ("frozen + ridge", "seal head")


@pytest.fixture
def results() -> pd.DataFrame:
    """Mean correlation falls from P0 to P3; P3 of B4 was not measured."""
    rows = [
        {"section": s, "method": m, "pathway": f"P{i}", "pearson": 0.9 - 0.4 * i + 0.01 * j + 0.05 * k}
        for i in (2, 0, 1, 3)
        for j, s in enumerate(SECTIONS)
        for k, m in enumerate(METHODS)
    ]
    table = pd.DataFrame(rows).assign(spearman=0.25)
    table.loc[(table["pathway"] == "P3") & (table["section"] == "B4"), "pearson"] = np.nan
    return table


def blocks(figure: plt.Figure) -> list[plt.Axes]:
    return [ax for ax in figure.axes if ax.images and ax.get_title()]


def test_a_block_per_method_with_its_values(results):
    figure = sl.pl.pathway_agreement(results)
    axes = blocks(figure)
    assert [ax.get_title() for ax in axes] == list(METHODS)
    for k, ax in enumerate(axes):
        (image,) = ax.images
        assert image.get_clim() == (-1, 1)
        expected = [[0.9 - 0.4 * i + 0.01 * j + 0.05 * k for j in range(3)] for i in range(4)]
        expected[3][1] = np.nan
        np.testing.assert_allclose(image.get_array().filled(np.nan), expected)
        assert [t.get_text() for t in ax.get_xticklabels()] == ["A1", "B4", "all sections"]
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["P0", "P1", "P2", "P3"]
    assert not any(t.get_text() for t in axes[1].get_yticklabels())
    assert [t.get_text() for t in axes[0].texts[:4]] == ["0.90", "0.91", "0.92", "0.50"]
    assert "−0.30" in [t.get_text() for t in axes[0].texts]
    # One cell is not measured.
    assert len(axes[0].texts) == 11


def test_methods_are_columns_of_one_section(results):
    (ax,) = blocks(sl.pl.pathway_agreement(results[results["section"] == "A1"], methods=METHODS[::-1]))
    assert ax.get_title() == "A1"
    assert [t.get_text() for t in ax.get_xticklabels()] == ["seal head", "frozen + ridge"]
    np.testing.assert_allclose(ax.images[0].get_array()[0], [0.95, 0.9])


def test_folds_and_seeds_are_averaged(results):
    twice = pd.concat([results.assign(seed=0), results.assign(seed=1, pearson=results["pearson"] - 0.2)])
    ax = blocks(sl.pl.pathway_agreement(twice, methods="seal head", pathways=["P2", "P0"]))[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["P2", "P0"]
    np.testing.assert_allclose(ax.images[0].get_array()[:, 0], [0.05, 0.85])


@pytest.mark.parametrize("n", [1, 60])
def test_names_and_values_fit(tmp_path, n):
    names = [f"HALLMARK_EPITHELIAL_MESENCHYMAL_TRANSITION_{i}" for i in range(n)]
    rows = [{"section": s, "method": "seal head", "pathway": p, "pearson": 0.0} for p in names for s in ("A1", "B4")]
    figure = sl.pl.pathway_agreement(pd.DataFrame(rows), save=tmp_path / "a.png")
    (ax,) = blocks(figure)
    renderer = figure.canvas.get_renderer()
    boxes = [t.get_window_extent(renderer) for t in ax.get_yticklabels()]
    assert min(b.x0 for b in boxes) >= 0
    assert all(upper.y0 >= lower.y1 for upper, lower in zip(boxes, boxes[1:], strict=False))
    cell = ax.get_window_extent().width / 2, ax.get_window_extent().height / n
    texts = [t.get_window_extent(renderer) for t in ax.texts]
    assert len(texts) == 2 * n
    assert all(t.width <= cell[0] and t.height <= cell[1] for t in texts)
    assert (tmp_path / "a.png").stat().st_size > 0


def test_no_values_where_cells_are_narrow(results):
    figure, ax = plt.subplots(figsize=(2, 3))
    one = results[results["method"] == "seal head"]
    assert sl.pl.pathway_agreement(pd.concat([one.assign(section=f"s{i}") for i in range(9)]), ax=ax) is ax
    assert not ax.texts
    with pytest.raises(sl.DataError, match="`ax` takes one panel, found 2"):
        sl.pl.pathway_agreement(results, ax=ax)


def test_what_is_wrong_is_named(results):
    with pytest.raises(sl.MissingKeyError, match=r"Column\(s\) 'pathway' not found in the table"):
        sl.pl.pathway_agreement(results.drop(columns="pathway"))
    with pytest.raises(sl.MissingKeyError, match="'P9' not found in column 'pathway'; found: 'P2'"):
        sl.pl.pathway_agreement(results, pathways=["P9"])
    with pytest.raises(sl.MissingKeyError, match="'mean' not found in column 'method'"):
        sl.pl.pathway_agreement(results, methods="mean")
    with pytest.raises(sl.DataError, match="`metric` must be one of 'pearson', 'spearman', found 'r2'"):
        sl.pl.pathway_agreement(results, metric="r2")
    with pytest.raises(sl.DataError, match="has no rows"):
        sl.pl.pathway_agreement(results.iloc[:0])
    with pytest.raises(sl.DataError, match="holds no finite value"):
        sl.pl.pathway_agreement(results.assign(pearson=np.nan))
    with pytest.raises(sl.DataError, match="must hold correlations from -1 to 1, found up to 9"):
        sl.pl.pathway_agreement(results.assign(pearson=9.0))
    with pytest.raises(TypeError, match="Expected a DataFrame with one row per pathway and section, found dict"):
        sl.pl.pathway_agreement({})
