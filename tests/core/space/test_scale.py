from __future__ import annotations

import math

import numpy as np
import pytest

import sealst as sl
from sealst._core.space.geometry import TURNS, agreed, likeness


def test_the_first_source_is_taken_where_all_agree():
    assert agreed({"a": 0.5, "b": 0.51, "c": 0.49}, what="it") == (0.5, "a")


@pytest.mark.parametrize(
    ("sources", "pair"),
    [({"a": 1.0, "b": 1.045, "c": 0.955}, "by b, 0.955 by c"), ({"a": 1.0, "b": 2.0}, "1 µm per pixel by a, 2 by b")],
)
def test_any_two_that_disagree_are_refused_with_both_numbers(sources, pair):
    with pytest.raises(sl.ScaleError, match=pair):
        agreed(sources, what="it")


def test_a_number_that_is_none_is_no_scale():
    with pytest.raises(sl.ScaleError, match="nan"):
        agreed({"a": 1.0, "b": math.nan}, what="it")
    with pytest.raises(sl.ScaleError, match=r"of it is unknown. Pass `mpp=`"):
        agreed({}, what="it", hint="Pass `mpp=`.")


@pytest.mark.parametrize("turn", TURNS)
def test_likeness_names_what_was_done_to_a_picture(turn):
    picture = np.random.default_rng(0).normal(size=(32, 32))
    found = likeness(picture, TURNS[turn](picture))
    assert max(found, key=found.get) == turn
    assert found[turn] == pytest.approx(1)
    assert likeness(np.ones((4, 4)), picture[:4, :4])["as it is"] == 0
