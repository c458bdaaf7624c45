"""In a notebook a figure is shown once, wherever the call stands in its cell."""

from __future__ import annotations

import pickle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import sealst as sl
from sealst.pl import _base

nbformat = pytest.importorskip("nbformat", reason="notebooks need the docs extra")
nbclient = pytest.importorskip("nbclient", reason="notebooks need the docs extra")

SETUP = """
import matplotlib.pyplot as plt
import pandas as pd
import sealst as sl
table = pd.DataFrame({"section": ["B4"], "method": ["mean"], "genes": "hvg50", "metric": "pearson", "value": [0.3]})
"""
#: cells, and how many pictures each shows
CELLS = {
    "sl.pl.evaluation(table)": 1,
    "sl.pl.evaluation(table);": 1,
    "figure = sl.pl.evaluation(table)": 1,
    "sl.pl.evaluation(table)\n1 + 1": 1,
    "sl.pl.evaluation(table)\nsl.pl.evaluation(table)": 2,
    # An earlier figure, asked for again.
    "figure": 1,
    "sl.pl.evaluation(table, show=True)": 1,
    "sl.pl.evaluation(table, show=False)": 1,
    "sl.pl.evaluation(table, show=False);": 0,
    "closed = sl.pl.evaluation(table)\nplt.close(closed)\nclosed": 1,
    "ax = plt.subplots()[1]\nsl.pl.evaluation(table, ax=ax)": 1,
}


def test_a_figure_is_shown_once(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    # As users have it: the kernel chooses the backend.
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in (SETUP, *CELLS)])
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    found = {
        cell.source: sum("image/png" in output.get("data", {}) for output in cell.outputs)
        for cell in notebook.cells[1:]
    }
    assert found == CELLS


@pytest.fixture
def figure() -> Figure:
    table = pd.DataFrame({"section": ["B4"], "method": ["mean"], "genes": "", "metric": "pearson", "value": [0.3]})
    made = sl.pl.evaluation(table)
    yield made
    plt.close("all")


def test_what_is_returned_is_a_figure(figure: Figure) -> None:
    assert isinstance(figure, Figure)
    assert repr(figure).startswith("<Figure size ")
    again = pickle.loads(pickle.dumps(figure))
    assert len(again.axes) == len(figure.axes)
    np.testing.assert_array_equal(again.get_size_inches(), figure.get_size_inches())


def test_outside_of_notebooks_ipython_shows_it_as_any_other(figure: Figure, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotImplementedError):
        figure._ipython_display_()
    monkeypatch.setattr(plt, "get_backend", lambda: "module://matplotlib_inline.backend_inline")
    # What pyplot itself shows when a cell ends.
    with pytest.raises(NotImplementedError):
        figure._ipython_display_()
    monkeypatch.setattr(_base, "is_result", lambda: True)
    figure._ipython_display_()
    plt.close(figure)
    with pytest.raises(NotImplementedError):
        figure._ipython_display_()
    # `plt.show` has shown it in this cell, but not in the next one.
    monkeypatch.setattr(_base, "current_cell", lambda: 7)
    figure.shown_in = 7
    figure._ipython_display_()
    monkeypatch.setattr(_base, "current_cell", lambda: 8)
    with pytest.raises(NotImplementedError):
        figure._ipython_display_()
