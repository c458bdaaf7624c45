"""Sphinx configuration: `sphinx-build -W -b html docs docs/_build/html`, without a network."""

from __future__ import annotations

import importlib
import os
import shutil
from pathlib import Path
from typing import Any

from sphinx.ext.napoleon.docstring import NumpyDocstring

import sealst

HERE = Path(__file__).parent

project = "sealst"
author = "The sealst developers"
copyright = f"2026, {author}"
version = release = sealst.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
# rst first: autosummary writes its pages with the first suffix.
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build", "**.ipynb_checkpoints", "_lists"]
templates_path = ["_templates"]
# Single backticks in docstrings name arguments and calls.
default_role = "literal"

# Widget states (progress bars) in stored outputs have no static form.
suppress_warnings = ["mystnb.unknown_mime_type"]

# -- docstrings: numpy style, types only in the signature -------------------------------------------------------------
autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

# -- markdown and notebooks: stored outputs are shown, nothing runs ---------------------------------------------------
nb_execution_mode = "off"
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# -- references: ours must resolve, those to other packages only where their inventories can be had -------------------
nitpicky = True
# Nor have what checks annotations.
nitpick_ignore_regex = [(r"py:.*", r"(?!sealst\b).*"), (r"py:class", r"sealst\._given\..*")]
if os.environ.get("SEALST_DOCS_INTERSPHINX") == "1":
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "matplotlib": ("https://matplotlib.org/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/docs/", None),
        "python": ("https://docs.python.org/3/", None),
        "spatialdata": ("https://spatialdata.scverse.org/en/stable/", None),
    }

# -- html -------------------------------------------------------------------------------------------------------------
html_theme = "sphinx_book_theme"
html_title = "sealst"
html_show_sourcelink = False
# The search field of the sidebar is enough.
html_theme_options = {"show_toc_level": 2, "use_download_button": False, "navbar_persistent": []}

PACKAGES = ("datasets", "get", "io", "models", "pl", "pp", "tl")


def public_names() -> dict[str, str]:
    """Map where an object is defined to the name users know it by."""
    names = {}
    for module in ("sealst", *(f"sealst.{package}" for package in PACKAGES)):
        namespace = importlib.import_module(module)
        for name in namespace.__all__:
            item = getattr(namespace, name)
            if hasattr(item, "__qualname__"):
                names.setdefault(f"{item.__module__}.{item.__qualname__}", f"{module}.{name}")
    return names


def resolve_public(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Point references to private modules (as annotations spell them) at the public name."""
    target = node.get("reftarget", "")
    public = app.config.sealst_public.get(target)
    if node.get("refdomain") != "py" or public is None:
        return None
    domain = env.get_domain("py")
    return domain.resolve_any_xref(env, node["refdoc"], app.builder, public, node, contnode)[0][1]


def returns_as_written(self: NumpyDocstring, section: str) -> list[str]:
    """Keep the text of a Returns section: napoleon would read its lines as types, which stand in the signature."""
    lines = self._dedent(self._consume_to_next_section())
    return [*self._format_block(":returns: ", lines), ""]


def copy_tutorials(app: Any) -> None:
    """Bring the notebooks, which live beside the docs, into the source tree that Sphinx reads."""
    target = HERE / "tutorials"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for path in sorted((HERE.parent / "tutorials").glob("*")):
        if path.suffix in {".ipynb", ".png", ".svg"}:
            shutil.copy2(path, target / path.name)


def list_pages(app: Any) -> None:
    """Write the lists that the pages Tutorials and Guides include; a glob without a match would fail the build."""
    target = HERE / "_lists"
    target.mkdir(exist_ok=True)
    for folder, ending in (("tutorials", ".ipynb"), ("guide", ".md")):
        pages = [f"{folder}/{path.stem}" for path in sorted((HERE / folder).glob(f"*{ending}"))]
        text = "\n".join(["```{toctree}", ":maxdepth: 1", "", *pages, "```", ""])
        (target / f"{folder}.md").write_text(text, encoding="utf-8")


def setup(app: Any) -> None:
    """Register the hooks above."""
    app.add_config_value("sealst_public", public_names(), "env")
    app.connect("builder-inited", copy_tutorials, priority=100)
    app.connect("builder-inited", list_pages, priority=101)
    NumpyDocstring._parse_returns_section = returns_as_written  # type: ignore[method-assign]
    app.connect("missing-reference", resolve_public)
