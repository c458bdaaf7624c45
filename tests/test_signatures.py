"""The table of docs/contributing/conventions.md, held by the signatures of every public function and method."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spatialdata import SpatialData

import sealst as sl

ROOT = Path(__file__).resolve().parents[1]

#: what the first argument may be called: the data that is worked on, or what is read where there are none yet
FIRST = {
    "pp": {"sdata", "data", "sections", "train_sections"},
    "tl": {"sdata", "data", "sections", "bags", "manifest"},
    "pl": {"sdata", "evaluation", "history"},
    "get": {"data"},
    "io": {"path", "source", "data", "sdata", "bags"},
    "models": {"path", "encoder", "name"},
    "datasets": {"section", "n_sections"},
}
#: files of several kinds that no single one stands for, and a call without data
FIRST_ELSEWHERE = {"io.from_arrays": "image", "io.read_st": "counts", "tl.clear_cache": "older_than"}
#: names of arguments that are not used, and the one that is
FORBIDDEN = {
    **dict.fromkeys(("n", "k", "n_top_genes"), "n_<things>"),
    **dict.fromkeys(("tile_um", "size_px", "patch_um", "patch_size"), "crop_um"),
    **dict.fromkeys(("tile_px", "px"), "crop_px"),
    **dict.fromkeys(("sdatas", "adata", "adatas", "dataset"), "sdata, data or sections"),
    **dict.fromkeys(("result", "results"), "evaluation"),
    **dict.fromkeys(("folder", "out", "outdir", "file", "filename"), "path"),
    **dict.fromkeys(("image_name", "img", "layer_key", "labels_layer"), "image_key, labels_key"),
    **dict.fromkeys(("n_neighbours", "n_hit", "top_k"), "n_neighbors, n_hits"),
    **dict.fromkeys(("replicate", "batch"), "replicate_key"),
    "ncols": "n_cols",
    "prefix": "key_added",
}
#: what may be given by place after the data: a model or gene sets first, then what is asked
MODELS, QUESTIONS = {"model", "net"}, {"query", "reference", "target", "groupby", "genes", "pathways", "color", "path"}
#: readers: what stands in `.obs` is given as a value
VALUES = ("section", "patient", "organ", "technology")


def members() -> Iterator[tuple[str, Any]]:
    """Public functions, and methods that public classes define themselves."""
    for package in sl._SUBMODULES:
        module = importlib.import_module(f"sealst.{package}")
        for name in module.__all__:
            item = getattr(module, name)
            if inspect.isfunction(item):
                yield f"{package}.{name}", item
            elif inspect.isclass(item):
                own = [n for n in vars(item) if not n.startswith("_") and callable(getattr(item, n))]
                yield from ((f"{package}.{name}.{n}", getattr(item, n)) for n in own)


CALLS = dict(members())
FUNCTIONS = {name: item for name, item in CALLS.items() if name.count(".") == 1}


def parameters(item: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(item).parameters)


def test_there_are_calls_to_look_at() -> None:
    assert len(FUNCTIONS) > 60
    assert {"tl.SealIndex.search", "io.Collection.write", "models.SealModel.save"} <= set(CALLS)


def test_no_call_has_a_name_of_its_own_for_a_thing() -> None:
    found = [
        f"{call}({p}): say {FORBIDDEN[p]}" for call, item in CALLS.items() for p in parameters(item) if p in FORBIDDEN
    ]
    assert not found


def test_data_comes_first() -> None:
    wrong = []
    for call, item in FUNCTIONS.items():
        names = list(parameters(item))
        allowed = {FIRST_ELSEWHERE[call]} if call in FIRST_ELSEWHERE else FIRST[call.split(".")[0]]
        if names and names[0] not in allowed:
            wrong.append(f"{call}({names[0]}, …): expected {sorted(allowed)}")
    assert not wrong


def test_then_the_model_then_the_question() -> None:
    wrong = []
    for call, item in FUNCTIONS.items():
        places = [p.name for p in parameters(item).values() if p.kind is p.POSITIONAL_OR_KEYWORD][1:]
        if call.startswith("tl.") and MODELS & set(places) and places[0] not in MODELS:
            wrong.append(f"{call}: {places}")
        elif call.startswith("tl.") and (other := set(places) - MODELS - QUESTIONS - {"older_than"}):
            wrong.append(f"{call}: make {sorted(other)} keyword-only")
    assert not wrong


def test_a_default_means_the_same_everywhere() -> None:
    wrong = []
    for call, item in CALLS.items():
        for name, parameter in parameters(item).items():
            seeded = name in ("seed", "seeds") and parameter.default is not None
            copied = name in ("copy", "overwrite") and parameter.default is not False
            # Where None is a layer, it is `.X`: what may be None says so.
            unnamed = name == "layer" and parameter.default is None and "`.X`" not in described(item, "layer")
            added = name == "key_added" and parameter.default is parameter.empty
            negative = re.match(r"(no|not|skip|without|disable)_", name)
            if seeded or copied or unnamed or added or negative:
                wrong.append(f"{call}({parameter})")
    assert not wrong


def described(item: Any, name: str) -> str:
    """What the docstring says of an argument."""
    found = re.search(rf"^{name}\n((?:    .*\n?)+)", inspect.getdoc(item) or "", flags=re.M)
    return found.group(1).replace("``", "`") if found else ""


def test_only_what_writes_files_overwrites() -> None:
    """Slots in memory are replaced by a later call; `overwrite=` belongs to a path."""
    wrong = []
    for call, item in CALLS.items():
        names = parameters(item)
        if "overwrite" in names and "path" not in names:
            wrong.append(call)
        if "overwrite" in names and "copy" in names:
            wrong.append(f"{call} has copy= too")
    assert not wrong


def test_readers_take_values_and_columns_are_called_key() -> None:
    wrong = []
    for call, item in CALLS.items():
        for name, parameter in parameters(item).items():
            if name in VALUES and call.startswith(("io.read", "io.from", "pp.tile")):
                if "str" not in str(parameter.annotation):
                    wrong.append(f"{call}({parameter}): a value is text")
                if re.search(r"\bcolumn\b", described(item, name), flags=re.I):
                    wrong.append(f"{call}({name}): the name of a column is `{name}_key`")
    assert not wrong


def test_a_copy_is_what_was_given(toy_section) -> None:
    """An AnnData for an AnnData, a SpatialData for a SpatialData, with pictures shared and a table of its own."""
    for call in ("normalize", "harmonize_genes"):
        sdata = toy_section()
        before = sdata.tables["table"].copy()
        made = getattr(sl.pp, call)(sdata, copy=True)
        assert isinstance(made, SpatialData), call
        assert made.images["toy_he"] is sdata.images["toy_he"]
        assert made.shapes["toy_spots"] is sdata.shapes["toy_spots"]
        assert made.tables["table"] is not sdata.tables["table"]
        assert call in made.tables["table"].uns["sealst"]
        np.testing.assert_array_equal(sdata.tables["table"].X.toarray(), before.X.toarray())
        assert "sealst" not in sdata.tables["table"].uns
        table = getattr(sl.pp, call)(before, copy=True)
        assert type(table) is type(before)
        assert call in table.uns["sealst"]
        made.tables["table"].obs["mine"] = 1
        assert "mine" not in sdata.tables["table"].obs


def test_a_copy_keeps_what_else_is_there(toy_section) -> None:
    sdata = toy_section()
    sdata.attrs["note"] = "kept"
    sdata.tables["other"] = sdata.tables["table"].copy()
    made = sl.pp.normalize(sdata, copy=True)
    assert made.attrs["note"] == "kept"
    assert made.tables["other"] is sdata.tables["other"]
    made.attrs["note"] = "changed"
    assert sdata.attrs["note"] == "kept"


def test_seeds_come_from_the_settings() -> None:
    size = {"size_um": 400, "n_genes": 144, "mpp": 4.0}
    with sl.settings.override(seed=3):
        told, by_settings = sl.datasets.synthetic(seed=3, **size), sl.datasets.synthetic(**size)
        random = sl.models.build_encoder("vit_tiny_patch16_224", pretrained=False).spec.seed
    np.testing.assert_array_equal(told.tables["table"].X.toarray(), by_settings.tables["table"].X.toarray())
    assert random == 3
    other = sl.datasets.synthetic(**size)
    assert other.tables["table"].X.shape != told.tables["table"].X.shape or (
        (other.tables["table"].X != told.tables["table"].X).nnz
    )
    with pytest.raises(sl.DataError, match=r"`seed` must be a whole number, found 0\.5"):
        sl.datasets.synthetic(seed=0.5, **size)


def test_the_page_names_every_rule() -> None:
    page = (ROOT / "docs" / "contributing" / "conventions.md").read_text(encoding="utf-8")
    for name in ("layer", "key", "key_added", "crop_um", "seed", "copy", "overwrite", "patient", "maps"):
        assert f"`{name}`" in page, name
    shown = set(re.findall(r"`n_\w+`", page))
    assert {"`n_genes`", "`n_hits`", "`n_neighbors`", "`n_crops`"} <= shown
