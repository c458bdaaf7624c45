"""Conventions of the public surface: names and defaults of shared arguments, documentation, what objects show."""

from __future__ import annotations

import copy
import dataclasses
import doctest
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import sealst as sl
from sealst._html import SHOWN, as_html, text_as_html

ROOT = Path(__file__).resolve().parents[1]
PUBLIC = [(p, name) for p in sl._SUBMODULES for name in importlib.import_module(f"sealst.{p}").__all__]
FUNCTIONS = [(p, n) for p, n in PUBLIC if inspect.isfunction(getattr(getattr(sl, p), n))]
CLASSES = [(p, n) for p, n in PUBLIC if inspect.isclass(getattr(getattr(sl, p), n))]

KEYWORD = inspect.Parameter.KEYWORD_ONLY
REQUIRED = inspect.Parameter.empty
#: defaults that an argument may have, wherever it occurs; all of them are keyword-only
SHARED: dict[str, tuple[Any, ...]] = {
    "copy": (False,),
    "overwrite": (False,),
    "table_key": ("table",),
    "progress": (None,),
    "device": (None,),
    "batch_size": (None,),
    "seed": (None,),
    "seeds": (None,),
    "save": (None,),
    "show": (None,),
    "region": (None, REQUIRED),
    "layer": (None, "auto", "lognorm", "context"),
    "allow_shared_patients": (False,),
}
#: names that other packages use for these, and what they are called here
OTHER_NAMES = {
    **dict.fromkeys(("inplace", "in_place"), "copy"),
    **dict.fromkeys(("table_name", "tables_key"), "table_key"),
    **dict.fromkeys(("region_name", "region_key", "library_id"), "region"),
    **dict.fromkeys(("layer_key", "layers", "use_layer"), "layer"),
    **dict.fromkeys(("key_name", "added_key", "out_key"), "key_added"),
    **dict.fromkeys(("random_state", "random_seed", "rng"), "seed"),
    **dict.fromkeys(("verbose", "show_progress", "progress_bar", "pbar"), "progress"),
    **dict.fromkeys(("n_threads", "n_workers", "num_workers"), "settings.n_jobs"),
    **dict.fromkeys(("force", "exist_ok"), "overwrite"),
}
#: arguments that are passed on to another package under its own name, or mean something else (processes, not threads)
PASSED_ON = {"tl.pathways.verbose", "tl.embed_slides.n_workers"}


def get(package: str, name: str) -> Any:
    return getattr(getattr(sl, package), name)


# -- arguments --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("package", "name"), FUNCTIONS)
def test_shared_arguments(package, name):
    parameters = inspect.signature(get(package, name)).parameters
    foreign = {p: OTHER_NAMES[p] for p in parameters if p in OTHER_NAMES and f"{package}.{name}.{p}" not in PASSED_ON}
    assert not foreign, f"called otherwise here: {foreign}"
    for argument in parameters.keys() & SHARED.keys():
        found = parameters[argument]
        assert found.kind is KEYWORD, f"make `{argument}` keyword-only"
        assert found.default in SHARED[argument], f"`{argument}` has the default {found.default!r}"
    if "key_added" in parameters:
        found = parameters["key_added"]
        assert found.kind is KEYWORD
        assert found.default is not REQUIRED, "`key_added` has a default: the slot in docs/outputs.md"
    if "copy" in parameters:
        assert "None" in str(inspect.signature(get(package, name)).return_annotation), (
            "without a copy, None is returned"
        )


@pytest.mark.parametrize(("package", "name"), [(p, n) for p, n in FUNCTIONS if p == "pl"])
def test_figures_can_be_saved_and_shown_or_not(package, name):
    parameters = inspect.signature(get(package, name)).parameters
    # Pages are written to a path, and a widget lives in its notebook.
    assert name in ("explore", "report", "slide_report") or {"save", "show"} <= set(parameters)


def test_the_command_line_uses_the_same_names():
    """An option that a function has too is spelled as there."""
    from sealst.cli._common import name_in_config
    from sealst.cli._main import cli

    found = dict(commands(cli))
    assert {"evaluate", "slides embed"} <= set(found)
    for name, command in found.items():
        for option in command.params:
            # How much a command says is its own affair; processes of a run are an argument of the Python call too.
            assert option.name not in set(OTHER_NAMES) - {"verbose", "n_workers", "num_workers"}, (
                f"{name}: --{option.name}"
            )
            # Commands that call several functions have words of their own for what goes to one of them, and `--option`
            # is one of those that a reader takes.
            if name not in ("prepare", "export") and option.name not in ("as_json", "options"):
                assert name_in_config(option) == option.name, f"{name}: --{name_in_config(option)}"


def commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Commands by name, those of groups as ``group command``."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


# -- documentation ----------------------------------------------------------------------------------------------------
def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that a class defines itself, or takes from another class of the package."""
    for owner in cls.__mro__:
        if owner.__module__.startswith("sealst"):
            for name, item in vars(owner).items():
                if not name.startswith("_") and (
                    callable(item) or isinstance(item, property | classmethod | staticmethod)
                ):
                    yield name, getattr(item, "fget", None) or getattr(item, "__func__", item)


def described_fields(cls: type) -> set[str]:
    """Fields with a ``#:`` comment of their own or of the line above, and names in the sections of the docstring."""
    lines = inspect.getsource(cls).splitlines()
    doc = "\n".join(o.__doc__ or "" for o in cls.__mro__ if o.__module__.startswith("sealst"))
    found = {name.strip() for line in re.findall(r"^ *([\w, ]+)$", doc, flags=re.M) for name in line.split(",")}
    commented = False
    for line in lines:
        match = re.match(r"    (\w+): ", line)
        if match and commented:
            found.add(match.group(1))
        # Fields that follow each other share a comment.
        commented = line.strip().startswith("#:") or (commented and bool(match))
    return found


@pytest.mark.parametrize(("package", "name"), CLASSES)
def test_public_members_are_documented(package, name):
    cls = get(package, name)
    bare = [member for member, item in members(cls) if not inspect.getdoc(item)]
    assert not bare, f"no docstring: {bare}"
    if dataclasses.is_dataclass(cls):
        own = [f.name for f in dataclasses.fields(cls) if f.name in cls.__dict__.get("__annotations__", {})]
        silent = [f for f in own if not f.startswith("_") and f not in described_fields(cls)]
        plain = {"weight_decay", "weight_contrast", "weight_gene", "weight_image", "temperature", "std", "commercial"}
        assert not set(silent) - plain, f"say what these fields are: {silent}"


@pytest.mark.parametrize("name", [n for n in sl.__all__ if n not in (*sl._SUBMODULES, "__version__")])
def test_top_level_names_are_in_the_api_page(name):
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert re.search(rf"^(?:\s*|.*autodata:: ){name}\s*$", page, flags=re.M), f"list {name} in docs/api.md"


def test_the_api_page_lists_nothing_that_is_gone():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for block in re.findall(r"autosummary::.*?```", page, flags=re.S):
        for name in re.findall(r"^   ([\w.]+)$", block, flags=re.M):
            item: Any = sl
            for part in name.split("."):
                assert hasattr(item, part), f"docs/api.md lists {name}"
                item = getattr(item, part)


def test_every_guide_has_a_title_and_is_true_to_the_names_it_uses():
    """Calls that guides name exist: `sl.tl.embed`, {func}`sealst.pp.split`."""
    gone = []
    for path in sorted((ROOT / "docs").rglob("*.md")):
        if "_build" in path.parts or "generated" in path.parts:
            continue
        text = path.read_text(encoding="utf-8")
        if path.parent.name == "guide":
            assert text.startswith("# "), path.name
        for name in set(
            re.findall(rf"\b(?:sl|sealst)\.((?:{'|'.join(sl._SUBMODULES)})\.[a-zA-Z]\w*)\b(?![\w/]|\.py)", text)
        ):
            package, _, call = name.partition(".")
            if not hasattr(getattr(sl, package), call):
                gone.append(f"{path.relative_to(ROOT)}: {name}")
    assert not gone, f"these names do not exist: {gone}"


# -- examples ---------------------------------------------------------------------------------------------------------
def parsed(package: str, name: str) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(inspect.getdoc(get(package, name)) or "")


#: calls of which no example runs here: they read files of platforms, train, or draw what an evaluation found
WITHOUT_RUN = {
    *("get.expression", "get.hits", "get.pathways"),
    *("io.Collection", "io.from_spatialdata", "io.read", "io.read_collection", "io.read_hest_bench"),
    *("models.load", "models.load_official", "pp.cache_crops"),
    *("tl.SealIndex", "tl.annotate", "tl.build_index", "tl.evaluate", "tl.finetune", "tl.pathways"),
    *("tl.rank_pathways", "tl.retrieve"),
}
RUNNING = [c for c in PUBLIC if any(doctest.SKIP not in e.options for e in parsed(*c))]


def test_examples_run_unless_there_is_a_reason():
    skipped = {f"{p}.{n}" for p, n in PUBLIC if parsed(p, n) and (p, n) not in RUNNING}
    extra = skipped - WITHOUT_RUN
    # Newer calls may need trained models or files: at most a fifth of all examples may be for reading alone.
    assert len(extra | WITHOUT_RUN) <= len(PUBLIC) / 4, f"let examples run where they can: {sorted(extra)}"


@pytest.mark.parametrize(("package", "name"), RUNNING)
def test_example(package, name, tmp_path, monkeypatch, seal_model, drawn):
    """Examples may use `sdata` (a prepared section), `model` and `sections` beside what they import."""
    monkeypatch.chdir(tmp_path)
    text = inspect.getdoc(get(package, name)) or ""
    monkeypatch.setattr(sl.datasets, "synthetic", drawn)
    names = {"sl": sl, "np": np, "pd": pd} | seal_model(text)
    test = doctest.DocTestParser().get_doctest(text, names, name, None, 0)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False)
    assert runner.run(test, out=report.append).failed == 0, "".join(report)


def tiny_model(panel: sl.GenePanel) -> sl.models.SealModel:
    encoder = sl.models.build_encoder("vit_tiny_patch16_224", pretrained=False)
    parts = {"adapter": sl.models.LoraParams(n_blocks=1), "gene_encoder": sl.models.GeneVAEParams(hidden=(8,))}
    return sl.models.SealModel(encoder, panel, crop=sl.models.CropSpec(112, 32), **parts)


@pytest.fixture(scope="module")
def drawn():
    """`sl.datasets.synthetic`, which draws the same section once for all examples."""
    draw, made = sl.datasets.synthetic, {}

    def synthetic(*args: Any, **options: Any) -> Any:
        key = (args, tuple(sorted(options.items())))
        if key not in made:
            made[key] = draw(*args, **options)
        return copy.deepcopy(made[key])

    return synthetic


@pytest.fixture(scope="module")
def seal_model():
    """What examples of calls that use a model need: made when the first of them runs."""
    made: dict[str, Any] = {}

    def names(text: str) -> dict[str, Any]:
        if not re.search(r">>> .*\b(sdata|model|sections|s1)\b", text):
            return {}
        if not made:
            sections = sl.datasets.synthetic(3, n_patients=3, size_um=600, mpp=1.0, n_genes=144)
            for section in sections:
                sl.pp.pair_crops(section, crop_um=112, crop_px=32)
                sl.pp.normalize(section)
            made.update(sections=sections, model=tiny_model(sl.pp.select_genes(sections, n_genes=12)))
        s1, s2, s3 = made["sections"]
        return made | {"sdata": s1, "s1": s1, "s2": s2, "s3": s3}

    return names


# -- what objects show ------------------------------------------------------------------------------------------------
NASTY = "<script>&"


def shown() -> dict[str, Any]:
    """One object of every class that users meet, with a name that must be escaped where it may hold one."""
    from sealst._data.bags.bags import Bag, Bags

    encoder = sl.models.build_encoder("vit_tiny_patch16_224", pretrained=False)
    panel = sl.GenePanel(genes=[NASTY, "B"], mean=[0.0, 1.0], std=[1.0, 1.0])
    obs = pd.DataFrame({"patient": ["a", "b"], "label": [NASTY, "x"]}, index=["s1", "s2"])
    readers = dict.fromkeys(obs.index, lambda key: Bag("s1", np.zeros((1, 2), np.float32), None, np.array(["t"])))
    sdata = sl.datasets.synthetic(size_um=600, mpp=1.0, n_genes=144)
    table = pd.DataFrame(
        {"fold": ["a"], "section": ["s"], "method": [NASTY], "metric": "pearson", "genes": "", "value": 1.0}
    )
    return {
        "GenePanel": panel,
        "Encoder": encoder,
        "EncoderSpec": encoder.spec,
        "SealModel": tiny_model(panel),
        "Collection": sl.io.Collection([sdata]),
        "CheckReport": sl.io.check(sdata),
        "Split": sl.pp.Split({NASTY: np.array(["x"])}, {"s": np.array(["y", "z"])}, "patient-A"),
        "Evaluation": sl.tl.Evaluation(table, table, table, facts={"preset": NASTY}),
        "Bags": Bags(obs, keys=["X"], key="X", readers=readers),
        "SessionInfo": sl.session_info(),
    }


def test_objects_show_themselves_shortly_and_escaped():
    for name, item in shown().items():
        text, html = repr(item), item._repr_html_()
        assert len(text.splitlines()) <= 60, name
        assert not re.search(r"object at 0x", text), name
        assert "<script>" not in html, name
        assert html.count("<table") == html.count("</table>"), name
        assert len(html) < 20_000, name


def test_showing_a_model_does_no_work(monkeypatch):
    model = shown()["SealModel"]
    for name in ("fingerprint", "embed_images"):
        monkeypatch.setattr(type(model), name, property(lambda self: pytest.fail("a repr reads weights or embeds")))
    assert "crops:   112 µm at 32 px" in repr(model)
    assert "device" in model._repr_html_()


def test_html_of_texts_and_tables():
    html = as_html("a<b", {"k&": 1}, rows=[{"x": "<i>"}])
    assert "a&lt;b" in html
    assert "k&amp;" in html
    assert "&lt;i&gt;" in html
    assert text_as_html("Title\n  key: a: b\n  other: c").count("<tr>") == 2
    assert SHOWN >= 5


def test_session_info_names_versions_and_no_one():
    import getpass
    import json
    import platform

    info = sl.session_info()
    assert info["sealst"] == sl.__version__
    assert info["numpy"] == np.__version__
    assert info["device"]
    text = json.dumps(info)
    assert platform.node() not in text
    assert getpass.getuser() not in text.split()
