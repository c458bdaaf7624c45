"""One section on its way through a tool: resolved once, and handed on."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import sealst as sl

SOURCE = Path(sl.__file__).parent
TOOLS, SECTION = str(SOURCE / "tl"), str(SOURCE / "_section")

MAX_ENTRIES = 4


def entries(call: Callable[[], Any]) -> list[str]:
    """Functions of `_section` that code of `tl` calls, in order."""
    found: list[str] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or not frame.f_code.co_filename.startswith(SECTION) or frame.f_back is None:
            return
        if frame.f_back.f_code.co_filename.startswith(TOOLS):
            found.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def test_embed_enters_the_section_few_times(ready, model, record_property):
    sdata = ready(section="t", patient="p9")
    found = entries(lambda: sl.tl.embed(sdata, model, progress=False))
    assert "X_seal" in sdata.tables["table"].obsm
    print(f"\ntl.embed enters _section {len(found)} times for one region: {', '.join(found)}")
    record_property("entries", len(found))
    assert 1 <= len(found) <= MAX_ENTRIES


def test_a_region_of_two_sections_trains_as_two(toy_section, finetune, fast):
    """Sections and patients are those of the rows, whatever spots element they share."""
    sdata = toy_section(section="s1", patient="p1")
    obs = sdata.tables["table"].obs
    half = np.arange(len(obs)) >= len(obs) // 2
    obs["section"], obs["patient"] = np.where(half, "s2", "s1"), np.where(half, "p2", "p1")
    sl.pp.pair_crops(sdata, crop_um=64, crop_px=32)
    sl.pp.normalize(sdata)
    model = finetune([sdata], params=fast | {"weight_domain": 1.0, "domain": "patient"})
    assert model.provenance["sections"] == ["s1", "s2"]
    assert model.provenance["patients"] == ["p1", "p2"]


def test_a_model_in_place_of_sections_is_told(ready, model):
    with pytest.raises(TypeError, match="`sections` must be SpatialData.*found SealModel. Data comes first"):
        sl.tl.evaluate(model, ready(section="t", patient="p9"))
