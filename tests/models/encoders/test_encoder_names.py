"""Names of encoders, told without timm."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm

import sealst as sl
from sealst.models._encoders.names import check_encoder, timm_names


def test_names_in_timms_source_are_those_that_it_lists():
    assert timm_names() == sorted(timm.list_models())


def test_what_can_be_built_is_not_refused():
    former = next(name for name in timm.models._registry._deprecated_models if "." not in name)
    for name in ("uni2-h", "vit_small_patch16_224.augreg_in1k", former, "local-dir:x", "hf-hub:a/b", "./x", "/x"):
        check_encoder(name)


@pytest.mark.parametrize("name", ["vit_tinny", "no such model", "musk"])
def test_what_no_encoder_is_called_is_refused_as_when_it_is_built(name):
    with pytest.raises(sl.WeightsError) as early:
        check_encoder(name)
    with pytest.raises(sl.WeightsError) as late:
        sl.models.build_encoder(name)
    assert str(early.value) == str(late.value)


def test_timm_is_not_imported_for_it():
    code = (
        "import sys; from sealst.models._encoders.names import check_encoder, timm_names; check_encoder('resnet50'); "
        "print(len(timm_names()), *{'timm', 'torch', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    n, *imported = done.stdout.split()
    assert int(n) > 1000
    assert imported == []
