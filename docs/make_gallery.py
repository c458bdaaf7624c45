"""Draw the figures of the gallery: `python docs/make_gallery.py [name ...]` writes docs/_static/gallery/<name>.png.

The same functions are drawn by `tests/pl/test_gallery.py`; with `--baseline` this script writes its small pictures.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import gallery_data as data  # noqa: E402

import sealst as sl  # noqa: E402

Draw = Callable[..., Figure | Axes]

#: every figure of `sl.pl` by name; options (`save=`, `show=`, `ax=`) go through
FIGURES: dict[str, Draw] = {
    "slide": lambda **o: sl.pl.slide(data.tiled(), ["tissue_class", "ERBB2", "X_seal:0"], **o),
    "attention": lambda **o: sl.pl.attention(data.tiled(), n_crops=8, **o),
    "roc": lambda **o: sl.pl.roc(data.slides("classification"), **o),
    "precision_recall": lambda **o: sl.pl.precision_recall(data.slides("classification"), **o),
    "slide_calibration": lambda **o: sl.pl.slide_calibration(data.slides("classification"), **o),
    "slide_regression": lambda **o: sl.pl.slide_calibration(data.slides("regression"), **o),
    "kaplan_meier": lambda **o: sl.pl.kaplan_meier(data.slides("survival"), time_label="months", **o),
    "expression": lambda **o: sl.pl.expression(data.section(), ["ERBB2", "COL1A1"], **o),
    "pathways": lambda **o: sl.pl.pathways(data.section(), **o),
    "retrieval": lambda **o: sl.pl.retrieval(data.section(), n_crops=4, **o),
    "crops": lambda **o: sl.pl.crops(data.section(), n_crops=6, n_cols=6, order_by="ERBB2", **o),
    "evaluation": lambda **o: sl.pl.evaluation(data.evaluation(), metrics="pearson", **o),
    "learning_curve": lambda **o: sl.pl.learning_curve(data.learning_curve(), **o),
    "gene_scatter": lambda **o: sl.pl.gene_scatter(data.evaluation(), **o),
    "residual_maps": lambda **o: sl.pl.residual_maps(data.evaluation(), "ERBB2", sdata=data.section(), **o),
    "calibration": lambda **o: sl.pl.calibration(data.evaluation(), **o),
    "pathway_agreement": lambda **o: sl.pl.pathway_agreement(data.evaluation().pathways, **o),
    "training": lambda **o: sl.pl.training(data.history(), **o),
}
#: the same with one panel, to draw into an Axes
SINGLE: dict[str, Draw] = {
    "slide": lambda **o: sl.pl.slide(data.tiled(), "tissue_class", **o),
    "roc": FIGURES["roc"],
    "precision_recall": FIGURES["precision_recall"],
    "slide_calibration": FIGURES["slide_calibration"],
    "slide_regression": lambda **o: sl.pl.slide_calibration(data.slides("regression"), methods="X_seal", **o),
    "kaplan_meier": lambda **o: sl.pl.kaplan_meier(data.slides("survival"), methods="X_seal", **o),
    "expression": lambda **o: sl.pl.expression(data.section(), "ERBB2", maps="predicted", **o),
    "pathways": lambda **o: sl.pl.pathways(data.section(), "TUMOUR", **o),
    "evaluation": FIGURES["evaluation"],
    "learning_curve": FIGURES["learning_curve"],
    "gene_scatter": lambda **o: sl.pl.gene_scatter(data.evaluation(), sections=data.SECTIONS[0], **o),
    "calibration": FIGURES["calibration"],
    "pathway_agreement": lambda **o: sl.pl.pathway_agreement(data.evaluation().pathways, methods="seal head", **o),
    "attention": lambda **o: sl.pl.attention(data.tiled(), n_crops=0, **o),
    "retrieval": lambda **o: sl.pl.retrieval(data.section(), n_crops=0, **o),
    "crops": lambda **o: sl.pl.crops(data.section(), n_crops=1, **o),
    "residual_maps": lambda **o: sl.pl.residual_maps(data.evaluation(), "ERBB2", maps="residual", **o),
    "training": lambda **o: sl.pl.training(data.history(), stages="align", metrics=[], **o),
}
BASELINE_DPI = 40
_DPI, _COLOURS = 160, 256
#: of one picture; one that is larger has fewer colours
_MOST_BYTES = 200_000
#: most pixels across; a page shows a picture half as wide
_MOST_PX = 1500


def draw(name: str, **options: Any) -> Figure:
    """Draw a figure of the gallery with matplotlib's default style."""
    with mpl.rc_context(mpl.rcParamsDefault | {"backend": "agg"}):
        found = FIGURES[name](**options)
    return found if isinstance(found, Figure) else found.figure


def picture(figure: Figure, dpi: int) -> Image.Image:
    """Figure as pixels."""
    png = io.BytesIO()
    figure.savefig(png, dpi=dpi, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    return Image.open(png).convert("RGB")


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="figures to draw, by default all")
    parser.add_argument("--baseline", action="store_true", help="write the small pictures that the tests compare with")
    given = parser.parse_args()
    folder = HERE.parent / "tests" / "pl" / "baseline" if given.baseline else HERE / "_static" / "gallery"
    folder.mkdir(parents=True, exist_ok=True)
    for name in given.names or FIGURES:
        pixels = picture(draw(name), BASELINE_DPI if given.baseline else _DPI)
        if not given.baseline:
            pixels.thumbnail((_MOST_PX, 2 * _MOST_PX), Image.Resampling.LANCZOS)
        # Older versions set text otherwise, and are not compared.
        facts = PngInfo()
        facts.add_text("Software", f"matplotlib {mpl.__version__}")
        for colours in (_COLOURS, _COLOURS // 2, _COLOURS // 4):
            small = pixels.quantize(colours, Image.Quantize.MAXCOVERAGE)
            small.save(folder / f"{name}.png", optimize=True, pnginfo=facts)
            if (folder / f"{name}.png").stat().st_size < _MOST_BYTES:
                break


if __name__ == "__main__":
    main()
