"""A section with every slot that plots read, filled without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import EllipseCollection
from spatialdata import SpatialData

import sealst as sl

NO_CROP = "toy_2x1"


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture
def paired(toy_section: Callable[..., SpatialData]) -> SpatialData:
    """36 spots with crops of 60 µm and normalised counts; nothing predicted."""
    sdata = toy_section()
    sl.pp.pair_crops(sdata, crop_um=60, crop_px=32)
    sl.pp.normalize(sdata)
    return sdata


@pytest.fixture
def filled(paired: SpatialData) -> SpatialData:
    """The same with predictions, pathway scores and a query's similarity; one spot has no crop."""
    table = paired.tables["table"]
    rng = np.random.default_rng(0)
    reason = table.obs["crop_reason"].astype(str)
    reason[NO_CROP] = "outside image"
    table.obs["crop_reason"] = pd.Categorical(reason)
    table.obs["crop_ok"] = (reason == "ok").to_numpy()

    def frame(columns: list[str], values: np.ndarray) -> pd.DataFrame:
        out = pd.DataFrame(values.astype(np.float32), index=table.obs_names, columns=columns)
        out.loc[NO_CROP] = np.nan
        return out

    measured = table.to_df("lognorm")
    shrunk = measured.mean() + 0.3 * (measured - measured.mean())
    known = [g for g in table.var_names if g != "ACTB"]
    table.obsm["seal_expression"] = frame(known, shrunk[known].to_numpy() + rng.normal(0, 0.05, (36, len(known))))
    table.obsm["seal_pathways"] = frame(
        ["HALLMARK_EPITHELIAL_MESENCHYMAL_TRANSITION", "Hypoxia", "TGFb"], rng.normal(size=(36, 3)).cumsum(axis=0)
    )
    table.obsm["X_seal"] = frame([str(i) for i in range(4)], rng.normal(size=(36, 4))).to_numpy()
    similarity = np.linspace(-0.4, 0.9, 36, dtype=np.float32)
    similarity[table.obs_names == NO_CROP] = np.nan
    table.obs["seal_similarity"] = similarity
    table.obs["seal_rank"] = pd.Series(-similarity).rank().to_numpy()
    table.uns["sealst"] = {**table.uns["sealst"], "retrieve": {"query": "EPCAM, KRT8"}}
    return paired


@pytest.fixture
def spots_of() -> Callable[[plt.Axes], EllipseCollection]:
    """The circles of a map."""

    def find(ax: plt.Axes) -> EllipseCollection:
        (circles,) = [c for c in ax.collections if isinstance(c, EllipseCollection)]
        return circles

    return find
