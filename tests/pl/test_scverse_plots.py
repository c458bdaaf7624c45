"""Results plot with scanpy, squidpy and spatialdata-plot as they are."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image


def _pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)


def _save(path: Path) -> np.ndarray:
    plt.gcf().savefig(path, dpi=80)
    return _pixels(path)


def _has_viridis(pixels: np.ndarray) -> bool:
    """Whether clearly low, middle and high colours of viridis occur."""
    wanted = np.array([plt.get_cmap("viridis")(v)[:3] for v in (0.02, 0.5, 0.98)]) * 255
    return all((np.abs(pixels - colour).max(axis=1) < 12).any() for colour in wanted)


@pytest.mark.parametrize("basis", ["X_seal", "spatial"])
def test_scanpy_embedding(filled, tmp_path, basis):
    import scanpy as sc

    adata = filled.tables["table"]
    sc.pl.embedding(adata, basis=basis, color=["seal_similarity", "EPCAM"], layer="lognorm", cmap="viridis", show=False)
    pixels = _save(tmp_path / "embedding.png")
    assert pixels.std() > 10
    assert _has_viridis(pixels)


def test_scanpy_plots_predicted_expression(filled, tmp_path):
    import scanpy as sc

    predicted = sc.get.obs_df(filled.tables["table"], obsm_keys=[("seal_expression", "EPCAM")])
    adata = filled.tables["table"].copy()
    adata.obs["predicted EPCAM"] = predicted.iloc[:, 0]
    sc.pl.embedding(adata, basis="spatial", color="predicted EPCAM", cmap="viridis", show=False)
    assert _has_viridis(_save(tmp_path / "predicted.png"))


def test_squidpy_spatial_scatter_shows_the_tissue(filled, tmp_path):
    import squidpy as sq

    adata = filled.tables["table"]
    sq.pl.spatial_scatter(
        adata, color=["seal_similarity", "crop_reason"], library_id="toy", library_key=None, cmap="viridis", size=1.0
    )
    panels = plt.gcf().axes[:2]
    # The picture is the stored thumbnail, and the spots lie on it.
    thumbnail = adata.uns["spatial"]["toy"]["images"]["hires"]
    assert panels[0].images[0].get_array().shape[:2] == thumbnail.shape[:2]
    x_limits = sorted(panels[0].get_xlim())
    centres = adata.obsm["spatial"] * adata.uns["spatial"]["toy"]["scalefactors"]["tissue_hires_scalef"]
    assert x_limits[0] <= centres[:, 0].min()
    assert centres[:, 0].max() <= x_limits[1]
    pixels = _save(tmp_path / "scatter.png")
    assert _has_viridis(pixels)
    # Reds of the image's ramp, which viridis does not have.
    assert ((pixels[:, 0] > 180) & (pixels[:, 1] < 100)).sum() > 100


def test_spatialdata_plot_renders_image_and_spots(filled, tmp_path):
    pytest.importorskip("spatialdata_plot")
    (
        filled.pl.render_images("toy_he")
        .pl.render_shapes("toy_spots", color="seal_similarity", cmap="viridis")
        .pl.show(coordinate_systems="global", save=str(tmp_path / "shapes.png"))
    )
    pixels = _pixels(tmp_path / "shapes.png")
    assert _has_viridis(pixels)
    assert ((pixels[:, 0] > 180) & (pixels[:, 1] < 100)).sum() > 100


def test_spatialdata_plot_colours_crops_by_a_gene(filled, tmp_path):
    pytest.importorskip("spatialdata_plot")
    # Physical units: the coordinate system "um".
    filled.pl.render_shapes("toy_spots", color="EPCAM", table_layer="lognorm", cmap="viridis").pl.show(
        coordinate_systems="um", save=str(tmp_path / "gene.png")
    )
    assert _has_viridis(_pixels(tmp_path / "gene.png"))
