"""Embedded sections that are searched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from spatialdata import SpatialData

import sealst as sl
from sealst.models import SealModel


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return {}


@pytest.fixture
def sections(ready: Callable[..., SpatialData], model: SealModel, made: dict[str, Any]) -> list[SpatialData]:
    """Two sections, embedded and predicted, made once."""
    if "sections" not in made:
        made["sections"] = [ready(section="a", patient="p1"), ready(section="b", patient="p2", seed=3)]
        for sdata in made["sections"]:
            sl.tl.embed(sdata, model)
            sl.tl.predict(sdata, model)
    return made["sections"]
