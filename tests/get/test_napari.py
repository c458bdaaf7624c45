"""Predictions in a real viewer. It is not among what the tests install, and needs a display (a virtual one does)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Identity, Scale

import sealst as sl

pytestmark = pytest.mark.skipif(
    not os.environ.get("DISPLAY"), reason="a viewer needs a display: run it under xvfb-run, for one"
)


def test_predictions_colour_spots_and_maps_are_layers(toy_section: Callable[..., SpatialData]) -> None:
    interactive = pytest.importorskip("napari_spatialdata").Interactive
    from napari_spatialdata._view import QtAdataViewWidget
    from qtpy.QtWidgets import QApplication

    sdata = toy_section()
    table = sdata.tables["table"]
    values = np.linspace(0, 3, 72, dtype=np.float32).reshape(36, 2)
    table.obsm["seal_expression"] = pd.DataFrame(values, index=table.obs_names, columns=["ERBB2", "COL1A1"])
    sdata.tables["predicted"] = sl.get.expression(sdata)
    # As a map of expression: genes are channels, and its pixels bins of the picture.
    frame = {"global": Scale([20.0, 20.0], axes=("x", "y")), "um": Identity()}
    sdata.images["toy_he_expression"] = Image2DModel.parse(
        np.random.default_rng(0).random((2, 30, 30), dtype=np.float32), dims=("c", "y", "x"),
        c_coords=["ERBB2", "COL1A1"], transformations=frame,
    )  # fmt: skip
    shown = interactive(sdata, headless=True)
    viewer = shown._viewer
    try:
        for name in ("toy_he", "toy_he_expression", "toy_spots"):
            shown.add_element(name, "global", view_element_system=True)
            # Layers are made by a thread, one at a time.
            for _ in range(1000):
                QApplication.processEvents()
                if name in viewer.layers:
                    break
                time.sleep(0.05)
        assert {layer.name for layer in viewer.layers} == {"toy_he", "toy_he_expression", "toy_spots"}
        spots = viewer.layers["toy_spots"]
        viewer.layers.selection.active = spots
        (view,) = (
            one for dock in viewer.window.dock_widgets.values() for one in [dock] if isinstance(dock, QtAdataViewWidget)
        )
        view.table_name_widget.setCurrentText("predicted")
        view.var_widget._onAction(["ERBB2"])
        np.testing.assert_allclose(spots.features["ERBB2"], values[:, 0])
        assert len(np.unique(spots.face_color, axis=0)) > 30
        picture = shown.screenshot()
        assert picture.std() > 10
    finally:
        viewer.close()
