"""Conventions of every figure, held on the figures of the gallery; each is compared with a small stored picture.

After a change that is meant: `python docs/make_gallery.py && python docs/make_gallery.py --baseline`, and look at them.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.testing.compare import compare_images
from packaging.version import Version
from PIL import Image

import sealst as sl
from sealst.pl import _base

pytest.importorskip("sksurv", reason="survival curves need the extra `slide`")

ROOT = Path(__file__).resolve().parents[2]
BASELINE = Path(__file__).with_name("baseline")
#: root mean square difference, of 255; another font or renderer makes 2 to 6, a missing map or curve more
TOLERANCE = 12
WIDTH = 240

sys.path.insert(0, str(ROOT / "docs"))
gallery = importlib.import_module("make_gallery")
sys.path.remove(str(ROOT / "docs"))

REPORTS, WIDGETS = ("report", "slide_report"), ("explore",)
FUNCTIONS = [name for name in sl.pl.__all__ if name not in (*REPORTS, *WIDGETS)]
#: what makes several panels of functions of which the gallery shows one
SEVERAL = {
    "roc": {"classes": ["proficient", "deficient"]},
    "precision_recall": {"classes": ["proficient", "deficient"]},
    "slide_calibration": {"classes": ["proficient", "deficient"]},
}
#: maps of spots take seconds each, and what they show is tested on a toy section in files of their own
SLOW = {"crops", "expression", "pathways", "residual_maps", "retrieval"}
#: the gallery's second figure of a function
ALSO = {"slide_regression": "slide_calibration"}


def marked(names) -> list:
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in names]


def section(doc: str, name: str) -> str:
    """Text of a section of a numpy docstring."""
    match = re.search(rf"^{name}\n-+\n(.*?)(?=^\S[^\n]*\n-{{3,}}$|\Z)", inspect.cleandoc(doc), flags=re.M | re.S)
    return match.group(1).strip() if match else ""


def parameter_text(doc: str, name: str) -> str:
    """What a docstring says about a parameter."""
    match = re.search(rf"^{name}\n((?:    .*\n?|\n)+)", section(doc, "Parameters"), flags=re.M)
    return " ".join(match.group(1).split()) if match else ""


# -- signatures and docstrings ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature_and_returns(name):
    function = getattr(sl.pl, name)
    parameters = inspect.signature(function).parameters
    for option, kind in (("save", "str | Path | None"), ("show", "bool | None")):
        assert parameters[option].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters[option].default is None
        assert parameters[option].annotation == kind
        # One wording everywhere.
        assert parameter_text(function.__doc__, option) == parameter_text(sl.pl.expression.__doc__, option)
    returns, annotation = section(function.__doc__, "Returns"), inspect.signature(function).return_annotation
    assert parameters["ax"].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["ax"].default is None
    assert parameters["ax"].annotation == "Axes | None"
    assert re.match(r"Axes to draw into, for (a single|one|the map alone)", parameter_text(function.__doc__, "ax"))
    assert annotation == "Figure | Axes"
    assert returns == "The Figure, or `ax` where it was given."
    # `title` is a text per panel, whatever a figure shows.
    assert "titles" not in parameters
    if "title" in parameters:
        assert parameters["title"].annotation in ("str | None", "str | Sequence[str] | None")
    for shared in ("image_alpha", "coordinate_system", "n_bootstrap"):
        texts = {parameter_text(getattr(sl.pl, other).__doc__, shared) for other in FUNCTIONS} - {""}
        assert len({text.replace("tiles", "spots").replace(" of `sdata`", "") for text in texts}) <= 1, shared


@pytest.mark.parametrize("name", REPORTS)
def test_reports_take_a_path_and_return_it(name):
    function = getattr(sl.pl, name)
    parameters = inspect.signature(function).parameters
    assert list(parameters)[1:3] == ["path", "title"]
    assert inspect.signature(function).return_annotation == "Path"
    assert section(function.__doc__, "Returns") == "The path of the file."


def test_every_figure_is_in_the_gallery():
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert {ALSO.get(name, name) for name in gallery.FIGURES} == set(FUNCTIONS)
    assert {ALSO.get(name, name) for name in gallery.SINGLE} == set(FUNCTIONS)
    shown = dict(re.findall(r"_static/gallery/(\w+)\.png\){width=(\d+)px}", page))
    assert sorted(shown) == sorted(gallery.FIGURES)
    stored = {path.stem: path for path in (ROOT / "docs" / "_static" / "gallery").glob("*.png")}
    assert sorted(stored) == sorted(gallery.FIGURES)
    assert all(path.stat().st_size < 200_000 for path in stored.values())
    # Shown at half their width, so that they are sharp on screens of high resolution.
    assert {name: Image.open(path).width // 2 for name, path in stored.items()} == {k: int(v) for k, v in shown.items()}
    for name in FUNCTIONS:
        assert f"sealst.pl.{name}>" in page or f"`sealst.pl.{name}`" in page, name
    assert {path.stem for path in BASELINE.glob("*.png")} == set(gallery.FIGURES)


# -- figures ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def small(monkeypatch) -> None:
    """Saved at the size of the stored pictures: what takes time are pixels."""
    monkeypatch.setattr(_base, "SAVE_DPI", gallery.BASELINE_DPI)


def resized(path: Path, size: tuple[int, int], to: Path) -> Path:
    Image.open(path).convert("RGB").resize(size, Image.Resampling.BOX).save(to)
    return to


@pytest.mark.parametrize("name", marked(gallery.FIGURES))
def test_figure_is_saved_closed_and_as_it_was(name, small, tmp_path):
    path = tmp_path / "new" / f"{name}.png"
    figure = gallery.draw(name, save=path, show=False)
    assert isinstance(figure, Figure)
    assert not plt.get_fignums(), "`show=False` closes the figure"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    stored = BASELINE / path.name
    (w, h), (w0, h0) = (Image.open(one).size for one in (path, stored))
    drawn_with = Version(Image.open(stored).info["Software"].removeprefix("matplotlib "))
    if Version(mpl.__version__).release[:2] < drawn_with.release[:2]:
        pytest.skip(f"the stored picture is of matplotlib {drawn_with}; {mpl.__version__} sets text otherwise")
    # Text of another font may make a figure wider; the same figure keeps its shape.
    assert w / h == pytest.approx(w0 / h0, rel=0.1)
    size = (WIDTH, round(WIDTH * h0 / w0))
    pair = [resized(one, size, tmp_path / f"{i}.png") for i, one in enumerate((stored, path))]
    difference = compare_images(*(str(one) for one in pair), tol=TOLERANCE)
    assert difference is None, difference


@pytest.mark.parametrize("name", marked(gallery.SINGLE))
def test_axes_that_are_given_are_drawn_into_and_returned(name, small, tmp_path):
    figure, ax = plt.subplots(figsize=(5, 5))
    empty, path = len(ax.get_children()), tmp_path / f"{name}.png"
    assert gallery.SINGLE[name](ax=ax, save=path, show=False) is ax
    assert path.is_file()
    assert plt.fignum_exists(figure.number), "a figure of the user's stays open"
    assert len(ax.get_children()) > empty
    with pytest.raises(sl.DataError, match="`save` must end in a picture format"):
        gallery.SINGLE[name](save=tmp_path / "a.docx")


def draw_several(name: str, **options) -> Figure:
    if name == "evaluation":
        return sl.pl.evaluation(gallery.data.evaluation(), metrics=["pearson", "spearman"], **options)
    if name == "calibration":
        found = gallery.data.evaluation()
        two = dict.fromkeys(("P1_S1", "P2_S1"), next(iter(found.spots.values())))
        return sl.pl.calibration(dataclasses.replace(found, spots=two), **options)
    if name == "learning_curve":
        curve = gallery.data.learning_curve()
        return sl.pl.learning_curve(pd.concat([curve, curve.assign(genes="heg50")]), **options)
    return gallery.FIGURES[name](**SEVERAL.get(name, {}), **options)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_axes_are_refused_for_several_panels_and_the_error_says_how_to_ask_for_one(name):
    ax = plt.figure().add_subplot()
    with pytest.raises(
        sl.DataError, match=r"`ax` takes one panel, found \d+\. .* ask for one panel with .*`"
    ) as caught:
        draw_several(name, ax=ax)
    # What the error names are arguments of the function.
    named = re.findall(r"`(\w+)[=`]", str(caught.value).rpartition(" with ")[2])
    assert named
    assert set(named) <= set(inspect.signature(getattr(sl.pl, name)).parameters)
    assert not ax.has_data()


def test_a_changed_figure_is_noticed(small, tmp_path):
    """The comparison can fail: another colour map is another picture."""
    sl.pl.slide(gallery.data.tiled(), ["tissue_class", "ERBB2", "X_seal:0"], cmap="Greys", save=tmp_path / "a.png")
    stored = BASELINE / "slide.png"
    size = (WIDTH, round(WIDTH * Image.open(stored).size[1] / Image.open(stored).size[0]))
    pair = [resized(p, size, tmp_path / f"{i}.png") for i, p in enumerate((stored, tmp_path / "a.png"))]
    assert compare_images(*(str(one) for one in pair), tol=TOLERANCE) is not None
