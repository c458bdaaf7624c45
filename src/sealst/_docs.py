"""Parts of docstrings that several functions share, each written once.

Under a function decorated with `documented`, a line ``%(table_key)s`` of the docstring stands for the parameter and its
text. Where one name means different things the mark says which: ``%(shown.region)s`` describes `region`.
"""

from __future__ import annotations

import inspect
import re
from textwrap import fill
from typing import Any, TypeVar

F = TypeVar("F", bound=Any)

PARAMETERS = {
    # sections
    "table_key": "Name of the table in a SpatialData; its rows are the spots or tiles.",
    "region": "Region(s) of the table; by default all.",
    "shown.region": "Region to show; needed where the table has several.",
    "image_key": 'H&E image; by default ``"<section>_he"``, or the only image there is.',
    "shown.image_key": "H&E image; by default the one the crops come from.",
    "coordinate_system": "System in which image and spots (or tiles) meet.",
    "labels_key": 'Labels element that holds the tissue; by default ``"<section>_tissue"`` where `sealst.pp.tissue` '
    "wrote it, else the tissue is found for this call.",
    "min_tissue": "Smallest share of a tile that must be tissue, 0 to 1.",
    "pitch_um": "Known distance between the centres of neighbouring spots in µm (Visium 100, legacy ST 200).",
    # output of Space Ranger
    "spaceranger.image": "The H&E given to Space Ranger (its ``--image``): a file, a `SlideImage`, or uint8 "
    "(height, width, 3). A picture of another size than the coordinates belong to is refused. Without it, "
    "``tissue_hires_image.png`` (else ``tissue_lowres_image.png``) is used with a warning, as its pixels are large. "
    "The picture of CytAssist is never used.",
    "spaceranger.coordinate_scale": "For an image that was resized after Space Ranger: its width divided by the width "
    "of the original.",
    # running a model, and what it wrote
    "progress": "Progress bar; default ``settings.progress``.",
    "device": 'Device (``"auto"``, ``"cpu"``, ``"cuda"``, …); default ``settings.device``.',
    "model.device": "Device; default the model's own.",
    "embeddings.key": "Slot in ``.obsm`` with the image embeddings.",
    "suppress_um": "Smallest distance in µm between two hits of a section: hits closer to a better one are skipped. "
    "0 keeps all.",
    # figures
    "shown.sections": "Sections to show, in this order; by default all.",
    "shown.methods": "Methods to show, in this order; by default all.",
    "shown.targets": "Targets to show; by default all.",
    "embeddings.methods": 'Embeddings to show, such as ``"X_seal"``; by default all, the adapted one first.',
    "curves.classes": "Classes to show against the rest; by default the second of two, or all. By default those that "
    "no held-out slide is of are left out, with a warning.",
    "curves.n_bootstrap": "Bootstrap draws behind the band; 0 leaves it out.",
    "curves.seed": "Seed of these draws; default ``settings.seed``.",
    "n_cols": "Panels in a row.",
    "by_number.n_cols": "Panels in a row; by default chosen by their number.",
    "percentiles": "Percentiles of the values at which colours saturate.",
    "image_alpha": "Opacity of the H&E, 0 to 1.",
    "spot_size": "Factor on the true size of spots or tiles.",
    "ax": "Axes to draw into, for a single panel.",
    "map.ax": "Axes to draw into, for the map alone (``n=0``).",
    "html.path": "File to write, ending in ``.html``; an existing file is replaced once the new one is complete.",
}

#: how every figure is saved, shown and returned; ends the parameters
SECTIONS = {
    "figure": """save
    File to write; its ending picks the format (``.png``, ``.pdf``, …). At 150 dpi, or what
    `matplotlib.rcParams["savefig.dpi"]` says (`scanpy.set_figure_params(dpi_save=300)` sets it).
show
    True calls `matplotlib.pyplot.show`; None leaves it to the session (a notebook shows open figures when a cell
    ends, and each once, also where the call is the cell's last line); False closes the figure in pyplot, so that only
    what is returned shows it.

Returns
-------
The Figure, or `ax` where it was given."""
}


def documented(function: F) -> F:
    """Fill the shared parts into the docstring of a function or class.

    Examples
    --------
    >>> @documented
    ... def moran(sdata, *, table_key="table"):
    ...     '''Moran's I of every gene.
    ...
    ...     Parameters
    ...     ----------
    ...     sdata
    ...         Section.
    ...     %(table_key)s
    ...     '''
    >>> print(moran.__doc__.splitlines()[-1].strip())
    Name of the table in a SpatialData; its rows are the spots or tiles.
    """
    if function.__doc__:  # absent under `python -OO`
        function.__doc__ = filled(inspect.cleandoc(function.__doc__))
    return function


def filled(text: str) -> str:
    """Docstring, without the indent of its source, with the shared parts in place of their marks."""

    def part(mark: re.Match[str]) -> str:
        name, indent = mark[1], 4 * " "
        if name in SECTIONS:
            return SECTIONS[name]
        text = fill(PARAMETERS[name], 116, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
        return f"{name.rpartition('.')[2]}\n{text}"

    return re.sub(r"^%\((.+)\)s$", part, text, flags=re.M)
