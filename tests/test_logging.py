"""Work that shows no bar says how far it is, once a minute."""

from __future__ import annotations

import logging

import pytest

import sealst as sl
from sealst._logging import progress


@pytest.fixture
def clock(monkeypatch):
    """Time of progress bars, which stands still unless it is told to go on."""
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, logger="sealst")
    return lambda: [record.getMessage() for record in caplog.records]


def test_a_line_a_minute_where_no_bar_is_shown(clock, said):
    with progress(None, "trunk cache", total=400) as bar:
        for _ in range(4):
            clock(25)
            bar.update(50)
            bar.refresh()
    # After 75 s and not again until 135 s.
    assert said() == ["trunk cache: 150 of 400 (38%) after 1 min, about 2 min left"]
    with progress(None, "trunk cache", total=400) as bar:
        for _ in range(400):
            clock(25)
            bar.update()
    lines = said()[1:]
    assert len(lines) == 400 // 3
    assert lines[0] == "trunk cache: 3 of 400 (1%) after 1 min, about 2 h 45 min left"
    assert lines[-1].startswith("trunk cache: 399 of 400 (100%) after 2 h 46 min, about 0 min left")


def test_what_is_iterated_over_counts_too(clock, said):
    found = []
    for one in progress(range(3), "predicting slides", total=3):
        clock(61)
        found.append(one)
    assert found == [0, 1, 2]
    assert [line.partition(" after")[0] for line in said()] == [
        "predicting slides: 1 of 3 (33%)", "predicting slides: 2 of 3 (67%)", "predicting slides: 3 of 3 (100%)"
    ]  # fmt: skip


def test_shares_and_unknown_totals(clock, said):
    with progress(None, "embedding slides", total=2) as bar:
        clock(60)
        bar.update(0.25)
    with progress(None, "reading", total=None) as bar:
        clock(120)
        bar.update(7)
    assert said() == ["embedding slides: 0.25 of 2 (12%) after 1 min, about 7 min left", "reading: 7 after 2 min"]


def test_silent_where_it_is_short_asked_to_be_or_shown(clock, said, capsys):
    for options in ({"show": False}, {"lines": False}):
        with progress(None, "work", total=2, **options) as bar:
            clock(100)
            bar.update()
            assert bar.disable
    with progress(None, "work", total=2) as bar:
        clock(30)
        bar.update()
    with sl.settings.override(progress=True), progress(None, "drawn", total=2) as bar:
        clock(100)
        bar.update()
    assert said() == []
    assert "drawn" in capsys.readouterr().err
