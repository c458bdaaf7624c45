from __future__ import annotations

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import sealst as sl


def dots(ax):
    (found,) = ax.collections
    return np.asarray(found.get_offsets())


def names(ax):
    return [t for t in ax.texts if t.get_text()]


def test_a_dot_per_gene_at_the_mean_of_both_methods(evaluation):
    figure = sl.pl.gene_scatter(evaluation)
    assert len(figure.axes) == 3
    own = evaluation.genes.query("section == 'C2'").groupby(["method", "gene"])["pearson"].mean()
    expected = np.column_stack([own["frozen + ridge"], own["adapted + ridge"]])
    np.testing.assert_allclose(np.sort(dots(figure.axes[1]), axis=0), np.sort(expected, axis=0))
    assert figure.axes[1].get_xlabel() == "frozen + ridge, Pearson r"
    assert figure.axes[1].get_xlim() == figure.axes[1].get_ylim()


def test_title_counts_the_genes_above_the_line():
    genes = pd.DataFrame(
        {
            "section": "B4",
            "method": ["frozen + ridge"] * 4 + ["adapted + ridge"] * 4,
            "gene": ["A", "B", "C", "D"] * 2,
            "pearson": [0.1, 0.2, 0.3, np.nan, 0.2, 0.3, 0.1, 0.9],
        }
    )
    ax = sl.pl.gene_scatter(genes).axes[0]
    assert ax.get_title() == "B4: above the line 2 of 3 (67 %)"
    # A gene on the line is not above it.
    genes.loc[[0, 4], "pearson"] = 0.2
    assert sl.pl.gene_scatter(genes).axes[0].get_title() == "B4: above the line 1 of 3 (33 %)"


def test_names_overlap_neither_each_other_nor_dots_nor_the_frame(evaluation):
    ax = sl.pl.gene_scatter(evaluation, sections="B4", n_labels=20).axes[0]
    figure = ax.get_figure()
    figure.draw_without_rendering()
    # The outline of a letter is a little larger than its ink.
    boxes = [t.get_window_extent().padded(-1.5) for t in names(ax)]
    assert len(boxes) >= 15
    assert not [1 for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    centres = ax.transData.transform(dots(ax))
    assert not [1 for box in boxes for x, y in centres if box.contains(x, y)]
    frame = ax.get_window_extent()
    assert all(frame.x0 <= b.x0 and b.x1 <= frame.x1 and frame.y0 <= b.y0 and b.y1 <= frame.y1 for b in boxes)


def test_genes_that_differ_most_are_named_first(evaluation):
    ax = sl.pl.gene_scatter(evaluation, sections="C3", n_labels=3).axes[0]
    own = evaluation.genes.query("section == 'C3'").pivot_table(index="gene", columns="method", values="pearson")
    gain = (own["adapted + ridge"] - own["frozen + ridge"]).abs()
    assert {t.get_text() for t in names(ax)} == set(gain.nlargest(3).index)
    assert not names(sl.pl.gene_scatter(evaluation, sections="C3", n_labels=0).axes[0])


def test_twenty_sections_share_limits_and_do_not_overlap(evaluation_of):
    figure = sl.pl.gene_scatter(evaluation_of(20), n_labels=1)
    assert len(figure.axes) == 20
    assert len({ax.get_xlim() for ax in figure.axes}) == 1
    boxes = [ax.get_tightbbox().padded(-1) for ax in figure.axes]
    assert not [1 for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]


def test_given_axes_other_methods_and_saving(evaluation, tmp_path):
    _, ax = plt.subplots()
    options = {"x": "mean", "y": "seal head", "metric": "spearman", "sections": "B4"}
    assert sl.pl.gene_scatter(evaluation.genes, **options, ax=ax, save=tmp_path / "genes.png") is ax
    assert ax.get_ylabel() == "seal head, Spearman ρ"
    assert (tmp_path / "genes.png").stat().st_size > 5000
    with pytest.raises(sl.DataError, match="`ax` takes one panel, found 3"):
        sl.pl.gene_scatter(evaluation, ax=ax)


def test_what_is_not_there_is_named(evaluation):
    with pytest.raises(sl.MissingKeyError, match="`method`: 'uni' not found; found: 'frozen . ridge'"):
        sl.pl.gene_scatter(evaluation, x="uni")
    with pytest.raises(sl.MissingKeyError, match=r"Column\(s\) 'gene' not found in the table of genes"):
        sl.pl.gene_scatter(evaluation.genes.drop(columns="gene"))
    with pytest.raises(sl.DataError, match="`metric`"):
        sl.pl.gene_scatter(evaluation, metric="auc")
    with pytest.raises(sl.DataError, match="No gene of section 'B4' has a slope for both"):
        sl.pl.gene_scatter(evaluation, x="mean", metric="slope")
    with pytest.raises(TypeError, match=r"or its `\.genes`; found list"):
        sl.pl.gene_scatter([1])
