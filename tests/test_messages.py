"""What messages say and where warnings point."""

from __future__ import annotations

import warnings

import pandas as pd
import pytest

import sealst as sl
from sealst._validate import check_choice, check_key, near, resolve_params


def test_a_warning_points_at_the_users_line_however_deep_it_arises(tmp_path):
    frame = pd.DataFrame({"path": [tmp_path / "nothing.svs"]})
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        sl.tl.embed_slides(frame, "resnet18", tmp_path / "out", pretrained=False, retries=0)
    own = [w for w in found if issubclass(w.category, sl.SealstWarning)]
    assert {str(w.message)[:40] for w in own} >= {"1 of 1 slides failed; " + repr(str(tmp_path))[:18]}
    assert {w.filename for w in own} == {__file__}


def test_names_that_nearly_fit_are_offered():
    assert near(["VIEW"], ["views", "epochs"]) == " Did you mean 'views'?"
    assert near(["view", "epoch"], ["views", "epochs"]) == " Did you mean 'views' and 'epochs'?"
    assert near(["anything"], ["views", 3, None]) == ""
    with pytest.raises(sl.DataError, match=r"`params` has no field 'epoch'; known: .* Did you mean 'epochs'\?"):
        resolve_params(sl.tl.TrainParams, {"epoch": 3}, name="params")
    with pytest.raises(sl.DataError, match=r"found 'abmill'\. Did you mean 'abmil'\?"):
        check_choice("aggregator", "abmill", ["abmil", "mean"])
    with pytest.raises(sl.MissingKeyError, match=r"found: 'lognorm'\. Did you mean 'lognorm'\? Run it\."):
        check_key(["lognorm"], "log_norm", where="here", hint="Run it.")
