"""Folders, files and values of strangers: what is no use is refused in one line that names it, whatever it is.

Every input of the first table must be refused by an error of sealst. What is taken although it looks wrong stands in
the second, with the reason. Inputs that could take a process down are given to one of its own.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from click.testing import CliRunner

import sealst as sl
from sealst._given.yaml import parse_yaml
from sealst._train.params import SlideParams, TrainParams
from sealst.cli._main import cli
from sealst.models import CropSpec, GeneVAEParams, HeadParams, LoraParams, SealModel, build_encoder
from sealst.models._seal.readout import Readout
from sealst.tl._finetune.run_folder import begin

pytestmark = pytest.mark.slow

TINY = "vit_tiny_patch16_224"
DEEP = "[" * 100_000
#: values that are of no type, and of none of the sizes, that anything has
ODD: dict[str, Any] = {
    "text": "512",
    "negative": -1,
    "huge": 10**12,
    "fraction": 2.5,
    "nan": float("nan"),
    "true": True,
    "none": None,
    "list": [[1]],
    "mapping": {"a": {}},
}


class Code:
    """What runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch PWNED",)


class World:
    """A section, a model and an index, on disk and opened as they are asked for, to be spoiled."""

    def __init__(self, built: Path, work: Path) -> None:
        self.built, self.work = built, work
        for name in ("model", "index"):
            shutil.rmtree(work / name, ignore_errors=True)
            # Nothing spoils the base weights, which are large.
            shutil.copytree(built / name, work / name, copy_function=_linked)

    @property
    def model_folder(self) -> Path:
        return self.work / "model"

    @property
    def index_folder(self) -> Path:
        return self.work / "index"

    @cached_property
    def section(self) -> Any:
        return sl.io.read(self.built / "section.zarr")

    @cached_property
    def model(self) -> SealModel:
        return sl.models.load(self.built / "model", device="cpu")

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.work / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def link(self, name: str, target: str) -> Path:
        path = self.work / name
        path.symlink_to(target)
        return path


def _linked(source: str, target: str) -> None:
    (os.link if Path(source).name == "model.safetensors" else shutil.copyfile)(source, target)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a section, a model and an index."""
    folder = tmp_path_factory.mktemp("hostile")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        section = sl.datasets.synthetic(size_um=700, n_genes=150)
        sl.pp.pair_crops(section, crop_um=112, crop_px=32)
        sl.pp.normalize(section)
        panel = sl.pp.select_genes(section, 20)
        model = SealModel(
            build_encoder(TINY, pretrained=False), panel, crop=CropSpec(112.0, 32), adapter=LoraParams(n_blocks=1),
            gene_encoder=GeneVAEParams(hidden=(32, 16)), head=HeadParams(16),
        )  # fmt: skip
        facts = {
            "kind": "ridge",
            "target": "context",
            "rank": 8,
            "held_out": "spots",
            "scores": {"ridge on context": 0.4},
        }
        coef = np.random.default_rng(0).normal(size=(model.dim, 20), scale=0.02)
        model.use_readouts([Readout.of(coef, np.full(20, 5.0), facts)])
        model.history = pd.DataFrame({"stage": ["align"], "epoch": [1], "train_loss": [0.5]})
        model.provenance = {"sections": ["P1_S1"], "validation": [], "patients": ["P1"], "n_spots": 40, "seed": 0}
        model.save(folder / "model")
        sl.tl.predict(section, model, views=1)
        section.write(folder / "section.zarr")
        sl.tl.build_index(section, folder / "index")
    return folder


# -- ways to spoil ----------------------------------------------------------------------------------------------------
def spoiled(path: Path, where: str, value: Any) -> None:
    """Set (or with `...` remove) a value of a JSON file, by the keys that lead to it."""
    content = json.loads(path.read_text())
    *parents, last = [int(key) if key.isdigit() else key for key in where.split(".")]
    place = content
    for key in parents:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    path.write_text(json.dumps(content))


def config_of_model(where: str, value: Any) -> Callable[[World], Any]:
    def call(world: World) -> Any:
        spoiled(world.model_folder / "config.json", where, value)
        return sl.models.load(world.model_folder, device="cpu")

    return call


def file_of_model(name: str, content: bytes | Callable[[bytes], bytes] | None) -> Callable[[World], Any]:
    def call(world: World) -> Any:
        path = world.model_folder / name
        if content is None:
            path.unlink()
            os.mkfifo(path)
        else:
            path.write_bytes(content(path.read_bytes()) if callable(content) else content)
        return sl.models.load(world.model_folder, device="cpu")

    return call


def config_of_index(where: str, value: Any) -> Callable[[World], Any]:
    def call(world: World) -> Any:
        spoiled(world.index_folder / "config.json", where, value)
        return asked(sl.tl.SealIndex.load(world.index_folder))

    return call


def file_of_index(pattern: str, change: Callable[[bytes], bytes]) -> Callable[[World], Any]:
    def call(world: World) -> Any:
        for path in world.index_folder.glob(pattern):
            path.write_bytes(change(path.read_bytes()))
            if path.name != "config.json":
                config = json.loads((world.index_folder / "config.json").read_text())
                config["files"][path.name] = path.stat().st_size
                (world.index_folder / "config.json").write_text(json.dumps(config))
        return asked(sl.tl.SealIndex.load(world.index_folder))

    return call


def asked(index: sl.tl.SealIndex) -> Any:
    return repr(index), index.metadata, index.model, index.search(np.ones((1, index.dim)), n_hits=3)


def config_of_run(where: str, value: Any) -> Callable[[World], Any]:
    def call(world: World) -> Any:
        folder, facts = world.work / "run", {"params": {"epochs": 1}}
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        begin(folder, facts, rounding={"threads": 1}, first=True)
        spoiled(folder / "run.json", where, value)
        return begin(folder, facts, rounding={"threads": 1}, first=True)

    return call


def file_of_run(content: str) -> Callable[[World], Any]:
    def call(world: World) -> Any:
        (world.work / "run.json").write_text(content)
        return begin(world.work, {}, rounding={}, first=True)

    return call


def config_of_slides(where: str, value: Any) -> Callable[[World], Any]:
    def call(world: World) -> Any:
        (world.work / "slides").mkdir(exist_ok=True)
        path = world.work / "slides" / "run.json"
        path.write_text('{"settings": {"model": "a"}}')
        spoiled(path, where, value)
        return sl.tl.embed_slides(pd.DataFrame({"path": ["a.tif"]}), world.model, path.parent)

    return call


def config_of_stain(where: str, value: Any) -> Callable[[World], Any]:
    def call(world: World) -> Any:
        path = world.work / "stain.json"
        sl.pp.Stain("reinhard", {"mu": np.ones(3), "sigma": np.ones(3)}, "s").save(path)
        spoiled(path, where, value)
        return sl.pp.Stain.load(path)

    return call


def slides(content: str | bytes) -> Callable[[World], Any]:
    return lambda world: sl.tl.embed_slides(world.file("slides.csv", content), world.model, world.work / "embedded")


def collection(content: str) -> Callable[[World], Any]:
    def call(world: World) -> Any:
        section = world.built / "section.zarr"
        return sl.io.read_collection(world.file("sections.csv", content.format(section=section)))

    return call


def crops(**options: Any) -> Callable[[World], Any]:
    return lambda world: sl.pp.pair_crops(world.section, **options)


def normalize(count: Any = 1.0, kind: Any = float, **options: Any) -> Callable[[World], Any]:
    def call(world: World) -> Any:
        table = world.section.tables["table"]
        counts = np.ones(table.shape, kind)
        counts[0, 0] = count
        del table.layers["counts"]
        table.layers["raw"] = counts
        return sl.pp.normalize(world.section, layer="raw", **options)

    return call


def index_of(key: str, value: Any) -> Callable[[World], Any]:
    return lambda world: sl.tl.build_index(**({"sections": world.section, "path": world.work / "new"} | {key: value}))


def vanishing(world: World) -> Any:
    shutil.copytree(world.built / "section.zarr", world.work / "gone" / "section.zarr")
    sections = sl.io.read_collection(world.work / "gone")
    section = sections[0]
    shutil.rmtree(world.work / "gone")
    return sections.save(section)


def search(vectors: Any, **options: Any) -> Callable[[World], Any]:
    return lambda world: sl.tl.SealIndex.load(world.index_folder).search(vectors, **options)


def training(**params: Any) -> Callable[[World], Any]:
    return lambda world: TrainParams(**params)


def finetune(**options: Any) -> Callable[[World], Any]:
    def call(world: World) -> Any:
        given = {
            "encoder": TINY,
            "pretrained": False,
            "n_genes": 20,
            "params": {"epochs": 1, "views": 1, "cache": "none"},
        }
        return sl.tl.finetune([world.section], **(given | options))

    return call


def yaml_file(content: str | bytes) -> Callable[[World], Any]:
    return lambda world: finetune(params=world.file("params.yaml", content))(world)


def arrays(**changes: Any) -> Callable[[World], Any]:
    def call(world: World) -> Any:
        rng = np.random.default_rng(0)
        given: dict[str, Any] = {
            "image": rng.integers(0, 255, (200, 200, 3)).astype(np.uint8),
            "counts": rng.poisson(2, (4, 3)),
            "xy": np.array([[50, 50], [150, 50], [50, 150], [150, 150.0]]),
            "genes": ["A", "B", "C"],
            "mpp": 0.5,
            "spot_um": 55.0,
        } | changes
        image, counts, xy = (given.pop(name) for name in ("image", "counts", "xy"))
        return sl.io.from_arrays(image, counts, xy, **given)

    return call


def with_uns(value: Any, *keys: str) -> Callable[[World], Any]:
    def call(world: World) -> Any:
        place = world.section.tables["table"].uns
        *parents, last = ["sealst", *keys]
        for key in parents:
            place[key] = dict(place[key])
            place = place[key]
        place[last] = value
        sl.tl.embed(world.section, world.model, modality="gene", key_added="X_gene")
        sl.tl.embed(world.section, world.model, views=1)
        return sl.tl.retrieve(world.section, world.model, world.model.panel.genes[0])

    return call


def retrieve(query: Any, **options: Any) -> Callable[[World], Any]:
    return lambda world: sl.tl.retrieve(world.section, world.model, query, **options)


def net_of(weight: Any) -> pd.DataFrame:
    return pd.DataFrame({"source": "a", "target": ["ERBB2", "EPCAM"], "weight": weight})


def gene_sets(content: str | bytes, name: str = "sets.gmt") -> Callable[[World], Any]:
    return lambda world: sl.tl.pathways(world.section, world.file(name, content), tmin=1)


def encoder_folder(config: str, weights: bytes | None = b"", name: str = "model.safetensors") -> Callable[[World], Any]:
    def call(world: World) -> Any:
        folder = world.work / "encoder"
        folder.mkdir()
        (folder / "config.json").write_text(config)
        if weights is not None:
            (folder / name).write_bytes(weights)
        return sl.models.build_encoder(f"local-dir:{folder}")

    return call


def bomb(pattern: str = "[{0},{0},{0},{0},{0},{0},{0},{0},{0},{0}]") -> str:
    lines = ["a: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"b{i}: &a{i} {pattern.format(f'*a{i - 1}')}" for i in range(1, 10)]
    return "\n".join([*lines, "epochs: *a9"])


# -- what is refused --------------------------------------------------------------------------------------------------
Case = Callable[[World], Any]
#: inputs by kind; each is a label and a call
REFUSED: dict[str, dict[str, Case]] = {}


def add(group: str, **cases: Case) -> None:
    REFUSED.setdefault(group, {}).update(cases)


def odd(group: str, spoil: Callable[[str, Any], Case], **fields: str) -> None:
    """Odd values for fields; a field's text names the values that fit it."""
    for field, fitting in fields.items():
        where = field.replace("__", ".")
        values = {name: spoil(where, value) for name, value in ODD.items() if name not in fitting.split()}
        REFUSED[f"{group} {where}"] = values


odd(
    "model",
    config_of_model,
    encoder="", adapter="", gene_encoder="", head="", projection="", crop="", training="mapping", fingerprint="",
    organs="", readouts="", adapter__kind="", adapter__r="", adapter__alpha="fraction huge", adapter__dropout="",
    adapter__n_blocks="", gene_encoder__kind="", gene_encoder__hidden="", gene_encoder__n_flows="",
    gene_encoder__dropout="", head__hidden="", head__norm="true", projection__kind="", projection__dim="none",
    crop__crop_um="fraction huge", crop__crop_px="", encoder__arch="", encoder__pool="", encoder__dim="",
    encoder__n_blocks="", encoder__patch_px="", encoder__mean="", encoder__std="", encoder__model_args="mapping",
    encoder__filename="text", encoder__native_mpp="fraction huge none", encoder__hf_id="text", training__sections="",
    training__n_spots="none huge", readouts__0__scores="", readouts__0__kind="",
    readouts__0__surroundings_um="none", novelty="none",
)  # fmt: skip
add(
    "model",
    too_wide=config_of_model("head.hidden", 2**16),
    many_wide=config_of_model("gene_encoder.hidden", [2**16] * 8),
    more_flows=config_of_model("gene_encoder.n_flows", 200),
    another_key=config_of_model("adapter.evil", 1),
    slow_expression=config_of_model("adapter.targets", "(a+)+$"),
    no_expression=config_of_model("adapter.targets", ".*("),
    arch_of_the_hub=config_of_model("encoder.arch", "hf-hub:evil/repo"),
    fetched_weights=config_of_model("encoder.model_args", {"checkpoint_path": "/etc/passwd"}),
    endless_depth=config_of_model("encoder.model_args", {"depth": 10**7}),
    endless_width=config_of_model("encoder.model_args", {"embed_dim": 10**6, "num_heads": 1}),
    file_elsewhere=config_of_model("encoder.filename", "../../etc/passwd"),
    fingerprint_missing=config_of_model("fingerprint", ...),
    of_another_format=config_of_model("format", "3"),
    nested_deeply=file_of_model("config.json", DEEP.encode()),
    endless_number=file_of_model("config.json", b'{"format": ' + b"1" * 10**6 + b"}"),
    no_text=file_of_model("config.json", b"\xff\xfe{}"),
    empty=file_of_model("config.json", b""),
    a_pipe=file_of_model("config.json", None),
    a_list=file_of_model("config.json", b"[]"),
    base_elsewhere=file_of_model("base.json", lambda b: b.replace(b"true", b'"../.."')),
    base_nested=file_of_model("base.json", DEEP.encode()),
    base_number=file_of_model("base.json", b'{"sha256": 5, "included": true}'),
    heads_cut=file_of_model("heads.safetensors", lambda b: b[:1000]),
    heads_of_code=file_of_model("heads.safetensors", pickle.dumps(Code())),
    heads_changed=file_of_model("heads.safetensors", lambda b: b[:-5] + bytes([b[-5] ^ 1]) + b[-4:]),
    adapter_of_code=file_of_model("adapter/adapter_model.safetensors", pickle.dumps(Code())),
    base_config_nested=file_of_model("base/config.json", DEEP.encode()),
    base_config_fetching=file_of_model(
        "base/config.json",
        json.dumps({"architecture": TINY, "model_args": {"checkpoint_path": "/etc/passwd"}}).encode(),
    ),
    panel_no_text=file_of_model("panel.tsv", os.urandom(1000)),
    panel_cut=file_of_model("panel.tsv", lambda b: b[:400]),
    panel_nested=file_of_model("panel.tsv", lambda b: re.sub(rb"# sections: .*", b"# sections: " + DEEP.encode(), b)),
    reliability_no_text=file_of_model("reliability.tsv", b"\xff" * 100),
    reliability_empty=file_of_model("reliability.tsv", b""),
    reliability_nested=file_of_model("reliability.tsv", b"# model: " + DEEP.encode()),
    reliability_of_another=file_of_model(
        "reliability.tsv", b'# model: "0"\n# held_out: "patients"\n# patients: []\n# sections: []\nname\n'
    ),
    intervals_no_text=file_of_model("intervals.tsv", b"\xff" * 100),
    intervals_empty=file_of_model("intervals.tsv", b""),
    intervals_nested=file_of_model("intervals.tsv", b"# model: " + DEEP.encode()),
    intervals_of_another=file_of_model(
        "intervals.tsv",
        b'# model: "0"\n# held_out: "patients"\n# n_held_out: 3\n# readout: "ridge"\n# views: 8\nname\n',
    ),
    history_no_text=file_of_model("history.csv", b"\xff" * 100),
    history_empty=file_of_model("history.csv", b""),
    history_of_words=file_of_model("history.csv", b"stage,train_loss\nalign,much\n"),
    nothing=lambda world: sl.models.load(None),  # type: ignore[arg-type]
    null_character=lambda world: sl.models.load("a\0b"),
    a_file=lambda world: sl.models.load(world.file("x", "x")),
    slide_model=lambda world: sl.models.load_slide(world.model_folder),
)
odd(
    "index",
    config_of_index,
    segments="", segments__0="", segments__0__vectors="", segments__0__spots="", segments__0__means="",
    segments__0__n="", segments__0__sections="", dim="", kind="", columns="", made_by="", made_by__model="text",
    made_by__views="none", made_by__crop_px="none", files="", generation="huge", kept="none", faiss="none", options="",
    params="", space="", key="text",
)  # fmt: skip
add(
    "index",
    vectors_elsewhere=config_of_index("segments.0.vectors", "../secret.npy"),
    vectors_absolute=config_of_index("segments.0.vectors", "/tmp/secret.npy"),
    spots_of_the_system=config_of_index("segments.0.spots", "/etc/passwd"),
    faiss_of_the_system=config_of_index("faiss", "/etc/passwd"),
    no_segment=config_of_index("segments", []),
    another_length=config_of_index("segments.0.n", 5),
    another_dim=config_of_index("dim", 3),
    no_files=config_of_index("files", {}),
    a_column_too_many=config_of_index("columns", ["nope"]),
    a_section_twice=config_of_index("segments.0.sections", ["a", "a"]),
    vectors_of_code=file_of_index("vectors*", lambda b: pickle.dumps(Code())),
    vectors_cut=file_of_index("vectors*", lambda b: b[:-8]),
    vectors_of_nothing=file_of_index("vectors*", lambda b: b[:-8] + struct.pack("<2f", float("nan"), 0)),
    means_of_text=file_of_index("means*", lambda b: b"x" * len(b)),
    spots_cut=file_of_index("spots*", lambda b: b[:500]),
    config_nested=file_of_index("config.json", lambda b: DEEP.encode()),
    config_empty=file_of_index("config.json", lambda b: b""),
    no_folder=lambda world: sl.tl.SealIndex.load(world.work / "none"),
    over_the_system=lambda world: sl.tl.build_index(world.section, "/etc", overwrite=True),
)
odd("run", config_of_run, run="", rounding="mapping none")
odd("slides", config_of_slides, settings="")
odd("stain", config_of_stain, format="", method="", section="text", values="", values__mu="")
add(
    "run",
    nothing=file_of_run("{}"),
    empty=file_of_run(""),
    list=file_of_run("[]"),
    nested=file_of_run(DEEP),
    slides_without_settings=config_of_slides("settings", ...),
    stain_without_format=config_of_stain("format", ...),
    stain_of_ragged_rows=config_of_stain("values.mu", [[1, 2, 3], [1, 2]]),
    stain_of_zeros=lambda world: sl.pp.Stain.load("/dev/zero"),
)
add(
    "manifest",
    home_of_nobody=collection("path,section\n~nosuchuser/x.zarr,a\n"),
    section_elsewhere=collection("path,section\n{section},../../evil\n"),
    section_above=collection("path,section\n{section},..\n"),
    endless_scale=collection("path,section,mpp\n{section},a,1e999\n"),
    scale_of_words=collection("path,section,mpp\n{section},a,half\n"),
    path_twice=collection("path,path\nx,y\n"),
    null_character=collection("path,section\nx\0y,a\n"),
    long_path=collection("path\n" + "a" * 5000 + "\n"),
    empty=collection(""),
    of_zeros=lambda world: sl.io.read_collection(world.link("zero.csv", "/dev/zero")),
    slide_elsewhere=slides("path,slide\nx.tif,../../evil\n"),
    slide_of_nobody=slides("path,slide\n~nosuchuser/x.tif,a\n"),
    slide_scale=slides("path,slide,mpp\nx.tif,a,much\n"),
    slide_endless_scale=slides("path,slide,mpp\nx.tif,a,1e999\n"),
    slide_negative_scale=slides("path,slide,mpp\nx.tif,a,-1\n"),
    slide_long_patient=slides("path,slide,patient\nx.tif,a," + "p" * 5000 + "\n"),
    slide_twice=slides("path,slide\nx.tif,a\ny.tif,A\n"),
    slide_no_text=slides(b"path\n\xff\xfe\n"),
)
add(
    "crops",
    nan=crops(crop_um=float("nan")),
    huge=crops(crop_um=1e12),
    tiny=crops(crop_um=1e-6),
    pixels_huge=crops(crop_px=10**9),
    pixels_fraction=crops(crop_px=2.5),
    pixels_text=crops(crop_px="32"),
    sizes_twice=crops(crop_um=[112, 112.0]),
    no_size=crops(crop_um=[]),
    another_scale=crops(mpp=5.0),
    inside=crops(min_inside=7),
    inside_nan=crops(min_inside=float("nan")),
    no_section=lambda world: sl.pp.pair_crops("x"),  # type: ignore[arg-type]
)
add(
    "counts",
    nan=normalize(float("nan")),
    infinite=normalize(float("inf")),
    half=normalize(0.5),
    negative=normalize(-1),
    beyond_float=normalize(1e38),
    complex=normalize(kind=complex),
    words=normalize("x", kind=object),
    target_infinite=normalize(target_sum=float("inf")),
    target_text=normalize(target_sum="1e4"),
    weight=normalize(context_weight=2),
    weight_nan=normalize(context_weight=float("nan")),
)
add(
    "genes",
    none=lambda world: sl.pp.select_genes(world.section, 0),
    negative=lambda world: sl.pp.select_genes(world.section, -5),
    fraction=lambda world: sl.pp.select_genes(world.section, 1.5),  # type: ignore[arg-type]
    text=lambda world: sl.pp.select_genes(world.section, 10, include="ERBB2"),
    too_many=lambda world: sl.pp.select_genes(world.section, 2, include=list(world.model.panel.genes[:5])),
    unknown=lambda world: sl.pp.select_genes(world.section, 10, include=["<script>"]),
    twice=lambda world: sl.pp.select_genes(world.section, criterion=["ERBB2", "ERBB2"]),
    spots_nan=lambda world: sl.pp.select_genes(world.section, 10, min_spots=float("nan")),
    no_section=lambda world: sl.pp.select_genes([]),
)
add(
    "search",
    nan=search(np.full((1, 192), np.nan)),
    zeros=search(np.zeros((1, 192))),
    another_length=search(np.ones((1, 5))),
    hits=search(np.ones((1, 192)), n_hits=-1),
    suppress=search(np.ones((1, 192)), suppress_um=float("nan")),
    column=search(np.ones((1, 192)), where={"x": 1}),
)
add(
    "calls",
    embed_nothing=lambda world: sl.tl.embed(world.section, None),  # type: ignore[arg-type]
    embed_pool=lambda world: sl.tl.embed(world.section, TINY, pretrained=False, pool="x"),
    embed_slot=lambda world: sl.tl.embed(world.section, world.model, key_added="a/b"),
    embed_slot_number=lambda world: sl.tl.embed(world.section, world.model, key_added=5),  # type: ignore[arg-type]
    embed_region=lambda world: sl.tl.embed(world.section, world.model, region="../x"),
    predict_nothing=lambda world: sl.tl.predict(world.section, world.model, genes=[]),
    predict_unknown=lambda world: sl.tl.predict(world.section, world.model, genes=["<script>"]),
    predict_twice=lambda world: sl.tl.predict(world.section, world.model, genes=[world.model.panel.genes[0]] * 2),
    predict_sets=lambda world: sl.tl.predict(world.section, world.model, net={}),
    predict_method=lambda world: sl.tl.predict(
        world.section, world.model, net=sl.datasets.synthetic_net(), method="__class__"
    ),
    official_elsewhere=lambda world: sl.models.load_official("../../x"),
    official_nothing=lambda world: sl.models.load_official(None),  # type: ignore[arg-type]
    hub_elsewhere=lambda world: SealModel.from_pretrained("../../etc"),
    hub_of_others=lambda world: SealModel.from_pretrained("https://evil/x"),
    table_as_sets=lambda world: sl.tl.pathways(world.section, net_of(float("inf")), tmin=1),
    tmin_negative=lambda world: sl.tl.pathways(world.section, net_of(1.0), tmin=-1),
    tmin_fraction=lambda world: sl.tl.pathways(world.section, net_of(1.0), tmin=1.5),  # type: ignore[arg-type]
)
odd("pairing", lambda key, value: crops(**{key: value}), region="none", image_key="none", coordinate_system="",
    table_key="", mpp="none", pitch_um="none", spot_um="none", max_outside="true")  # fmt: skip
odd("normalizing", lambda key, value: normalize(**{key: value}), grid="", region="none", table_key="",
    context_weight="true", target_sum="huge fraction")  # fmt: skip
odd("indexing", index_of, key="", kind="", params="none mapping", columns="", model="none", sections="")
odd("reading", lambda key, value: lambda world: getattr(sl.io, key)(value), read="", read_visium="", read_visium_hd="",
    read_xenium="", read_hest="", read_hest_bench="", read_bags="", read_slide="", read_wsi="", recover="",
    check="text", open_image="", read_collection="")  # fmt: skip
add(
    "calls",
    retrieve_kind=retrieve("ERBB2", kind=["gene"]),
    retrieve_where=retrieve("ERBB2", where=[1]),
    retrieve_slot=retrieve("ERBB2", key=[1]),
    annotate_labels=lambda world: sl.tl.annotate(world.section, world.model, world.section, labels=["a"]),  # type: ignore[arg-type]
    quality_metrics=lambda world: sl.pp.quality(world.section, metrics=5),  # type: ignore[arg-type]
    quality_thresholds=lambda world: sl.pp.quality(world.section, thresholds="x"),  # type: ignore[arg-type]
    expression_slot=lambda world: sl.get.expression(world.section, key=["a"]),  # type: ignore[arg-type]
    slide_colours=lambda world: sl.pl.slide(world.section, color=[[1]], show=False),  # type: ignore[list-item]
    columns_negative=lambda world: sl.pl.expression(world.section, world.model.panel.genes[0], n_cols=-1, show=False),
    store_that_vanishes=vanishing,
    index_that_vanishes=lambda world: (
        index := sl.tl.SealIndex.load(world.index_folder),
        shutil.rmtree(world.index_folder),
        index.add(world.section),
    ),
)
odd(
    "training",
    lambda field, value: training(**{field: value}),
    epochs="huge none", warmup_epochs="huge none", batch_size="huge none", lr="huge fraction none",
    warmup_lr="huge fraction", weight_decay="huge fraction none", views="none", temperature="huge fraction",
    noise="huge fraction", mask_genes="none", balance="", weight_gene="huge fraction", patience="huge none",
    chunk_size="huge none", clip_norm="huge fraction", accumulate="huge", num_workers="", precision="",
    augmentation="", contrastive="", reconstruction="", domain="", monitor="", cache="", layer="", kl="true",
)  # fmt: skip
odd(
    "slide training",
    lambda field, value: lambda world: SlideParams(**{field: value}),
    epochs="huge", lr="huge fraction", dropout="", hidden="", attention="", max_tiles="huge", cache_mb="huge",
)  # fmt: skip
add(
    "training",
    one_spot=training(batch_size=1),
    seed_below=finetune(seed=-1),
    seed_beyond=finetune(seed=2**70),
    seed_text=finetune(seed="x"),
    encoder_none=finetune(encoder=None),
    encoder_empty=finetune(encoder=""),
    encoder_list=finetune(encoder=[TINY]),
    encoder_elsewhere=finetune(encoder="local-dir:../../etc"),
    rank_beyond=finetune(adapter={"kind": "lora", "r": 10**9}),
    adapter_number=finetune(adapter=5),
    wide_genes=finetune(gene_encoder={"kind": "mlp", "hidden": [10**9]}),
    text_of_widths=finetune(gene_encoder={"kind": "mlp", "hidden": "512"}),
    kind_elsewhere=finetune(gene_encoder={"kind": "../x"}),
    kind_list=finetune(gene_encoder={"kind": ["mlp"]}),
    run_null_character=finetune(run_dir="a\0b"),
    run_number=finetune(run_dir=5),
    run_below_a_file=lambda world: finetune(run_dir=world.file("file", "x") / "run")(world),
    run_of_no_folder=finetune(run_dir="/dev/null"),
    no_such_device=finetune(device="x"),
    no_such_gpu=finetune(device="cuda:99"),
    held_out_alike=lambda world: finetune(validation=[world.section])(world),
    precision=finetune(params={"epochs": 1, "precision": "foo"}),
    rank_of_none=finetune(adapter={"kind": "lora", "r": 0}),
    more_blocks_than_there_are=finetune(adapter={"kind": "lora", "n_blocks": 99}),
    keys_of_all_kinds=finetune(params={5: 1, "foo": 2}),
    yaml_of_code=yaml_file("!!python/object/apply:os.system ['touch PWNED']\n"),
    yaml_bomb=yaml_file(bomb()),
    yaml_bomb_of_mappings=yaml_file(bomb("{{p: {0}, q: {0}, r: {0}, s: {0}, t: {0}, u: {0}, v: {0}, w: {0}}}")),
    yaml_nested=yaml_file("epochs: " + "[" * 5000 + "]" * 5000),
    yaml_nested_lines=yaml_file("\n".join(" " * i + f"k{i}:" for i in range(500))),
    yaml_no_text=yaml_file(b"\x00\xff\xfe\x80"),
    yaml_control=yaml_file("epochs: \x01"),
    yaml_list=yaml_file("- 1\n- 2\n"),
    yaml_key_twice=yaml_file("epochs: 1\nepochs: 7\n"),
    yaml_key_of_a_list=yaml_file("? [1, 2]\n: 3\n"),
    yaml_of_zeros=lambda world: finetune(params=Path("/dev/zero"))(world),
    yaml_folder=lambda world: finetune(params=world.work)(world),
)
add(
    "section",
    words=arrays(counts=np.full((4, 3), "x")),
    infinite=arrays(counts=np.full((4, 3), np.inf)),
    beyond_float=arrays(counts=np.full((4, 3), 1e300)),
    negative=arrays(counts=-np.ones((4, 3))),
    no_places=arrays(xy=np.full((4, 2), np.nan)),
    places_in_space=arrays(xy=np.ones((4, 3))),
    no_spots=arrays(counts=np.ones((0, 3), int), xy=np.zeros((0, 2))),
    genes_twice=arrays(genes=["A", "A", "B"]),
    spots_twice=arrays(spot_ids=["a"] * 4),
    scale_of_atoms=arrays(mpp=1e-9),
    scale_true=arrays(mpp=True),
    picture_of_fractions=arrays(image=np.full((200, 200, 3), 100.0)),
    picture_without_colours=arrays(image=np.zeros((200, 200), np.uint8)),
    picture_of_nothing=arrays(image=np.zeros((0, 0, 3), np.uint8)),
    section_above=arrays(section=".."),
    column_of_ours=arrays(obs=pd.DataFrame({"region": ["x"] * 4})),
    objects=arrays(counts=np.full((4, 3), None)),
    complex_counts=arrays(counts=np.ones((4, 3), complex)),
    deep_counts=arrays(counts=np.ones((4, 3, 2))),
    words_for_places=arrays(xy=[["a", "b"]] * 4),
    ragged_places=arrays(xy=[[1, 2], [3]]),
    genes_number=arrays(genes=3),
    genes_text=arrays(genes="ABC"),
    genes_none=arrays(genes=[None, None, "A"]),
    names_of_spots=arrays(spot_ids=7),
    section_elsewhere=arrays(section="../../x"),
    section_lines=arrays(section="a\nb"),
    section_long=arrays(section="a" * 5000),
    section_number=arrays(section=5),
    patient_list=arrays(patient=["a"]),
    organ_mapping=arrays(organ={"a": 1}),
    places_sparse=arrays(xy=sp.csr_matrix(np.ones((4, 3)))),
    column_with_a_slash=arrays(obs=pd.DataFrame({"a/b": ["x"] * 4})),
    column_that_is_hidden=arrays(obs=pd.DataFrame({"__x": ["x"] * 4})),
    scale_text=arrays(mpp="0.5"),
    scale_list=arrays(mpp=[0.5]),
)
add(
    "records",
    text=with_uns("x"),
    list=with_uns([1]),
    embed_list=with_uns([1], "embed"),
    embed_text=with_uns("x", "embed", "X_seal"),
    pixels_of_words=with_uns({"P1_S1_spots": {"crop_um": 112.0, "pixels": "[1"}}, "embed", "X_seal", "crops"),
    pixels_list=with_uns({"P1_S1_spots": {"crop_um": 112.0, "pixels": "[1]"}}, "embed", "X_seal", "crops"),
    model_mapping=with_uns({"a": 1}, "embed", "X_seal", "model"),
    crops_text=with_uns("x", "crops"),
    crop_text=with_uns({"P1_S1_spots": "x"}, "crops"),
    caches_number=with_uns(5, "crop_caches"),
    normalize_list=with_uns([1], "normalize"),
    target_text=with_uns("many", "normalize", "target_sum"),
)
add(
    "query",
    empty=retrieve(""),
    none=retrieve(None),
    nothing=retrieve([]),
    nan_of_a_gene=retrieve({"ERBB2": float("nan")}),
    word_of_a_gene=retrieve({"ERBB2": "much"}),
    infinite_gene=retrieve({"ERBB2": float("inf")}),
    deviations=retrieve("ERBB2", n_std=float("nan")),
    hits=retrieve("ERBB2", n_hits=2.5),
    hits_negative=retrieve("ERBB2", n_hits=-1),
    suppress=retrieve("ERBB2", suppress_um=float("inf")),
    picture_of_fractions=retrieve(np.zeros((32, 32, 3))),
    picture_of_four=retrieve(np.zeros((32, 32, 4), np.uint8)),
    picture=retrieve(np.zeros((7, 7, 3), np.uint8)),
    slot=retrieve("ERBB2", key_added="<b>/.."),
)
add(
    "gene sets",
    empty=gene_sets(""),
    one_column=gene_sets("a\n"),
    latin=gene_sets(b"\xe4\tx\tERBB2"),
    of_zeros=lambda world: sl.tl.pathways(world.section, world.link("link.gmt", "/dev/zero")),
    not_packed=gene_sets("x", "sets.gmt.gz"),
    packed_bomb=gene_sets(gzip.compress(b"a\tb\t" + b"G" * (1 << 29)), "bomb.gmt.gz"),
    cut=gene_sets(gzip.compress(b"a\tb\tERBB2" * 1000)[:40], "cut.gmt.gz"),
    weights=gene_sets("source,target,weight\na,ERBB2,=1+1\n", "sets.csv"),
    elsewhere=lambda world: sl.tl.pathways(world.section, "../../etc/passwd"),
)
add(
    "encoder",
    list=encoder_folder("[]"),
    nothing=encoder_folder("{}"),
    nested=encoder_folder(DEEP),
    of_the_hub=encoder_folder('{"architecture": "hf-hub:evil/x"}'),
    unknown=encoder_folder('{"architecture": "nope"}'),
    number=encoder_folder('{"architecture": 5}'),
    args_list=encoder_folder(f'{{"architecture": "{TINY}", "model_args": [1]}}'),
    args_fetching=encoder_folder(f'{{"architecture": "{TINY}", "model_args": {{"checkpoint_path": "/etc/passwd"}}}}'),
    args_huge=encoder_folder(f'{{"architecture": "{TINY}", "model_args": {{"embed_dim": 60000, "num_heads": 1}}}}'),
    args_unknown=encoder_folder(f'{{"architecture": "{TINY}", "model_args": {{"foo": 1}}}}'),
    code=encoder_folder(f'{{"architecture": "{TINY}"}}', pickle.dumps(Code())),
    code_alone=encoder_folder(f'{{"architecture": "{TINY}"}}', pickle.dumps(Code()), "pytorch_model.bin"),
    weights_number=lambda world: sl.models.build_encoder("uni2-h", weights=5),  # type: ignore[arg-type]
    weights_json=lambda world: sl.models.build_encoder("uni2-h", weights=world.file("x.safetensors", "{}")),
    name_number=lambda world: sl.models.build_encoder(5),  # type: ignore[arg-type]
)


@pytest.mark.parametrize("kind", list(REFUSED))
def test_refused(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = []
    for name, call in REFUSED[kind].items():
        world = World(built, tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                wrong.append(f"{name}: taken, {call(world)!r}"[:300])
            except Exception as error:  # noqa: BLE001  which one it is, is the test
                if why := _not_ours(error):
                    wrong.append(f"{name}: {why}")
        for left in ("params.yaml", "encoder"):
            shutil.rmtree(tmp_path / left, ignore_errors=True)
    assert not wrong, "\n".join(["", *wrong])
    assert not list(tmp_path.rglob("PWNED"))


def _not_ours(error: Exception) -> str:
    """Why an error is no message for a user; empty where it is one."""
    raised = traceback.extract_tb(error.__traceback__)[-1]
    own = isinstance(error, TypeError) and "/sealst/" in raised.filename and "raise " in str(raised.line)
    if not (own or isinstance(error, sl.SealstError)):
        return "".join(traceback.format_exception(error)[-3:])
    return "" if 10 < len(str(error)) < 1500 else f"{len(str(error))} characters"


# -- what is taken, and why ------------------------------------------------------------------------------------------
TAKEN: dict[str, tuple[Case, str]] = {
    "model: repository of its encoder": (
        config_of_model("encoder.hf_id", "evil/repo"),
        "the base weights lie in the folder and have the stated hash; nothing is fetched",
    ),
    "model: name of its encoder": (
        config_of_model("encoder.key", "local-dir:/etc"),
        "a name alone, as base weights lie in the folder; nothing is opened there",
    ),
    "model: byte order mark": (
        file_of_model("config.json", lambda b: b"\xef\xbb\xbf" + b),
        "editors on Windows write one; what follows is the same JSON",
    ),
    "model: foreign keys for peft": (
        file_of_model("adapter/adapter_config.json", b'{"auto_mapping": {"parent_library": "os"}}'),
        "the file is for other tools and is not read: config.json says how the adapter is built",
    ),
    "model: pickles beside its weights": (
        lambda world: (
            torch.save(Code(), world.model_folder / "adapter" / "adapter_model.bin"),
            torch.save(Code(), world.model_folder / "base" / "pytorch_model.bin"),
            sl.models.load(world.model_folder, device="cpu"),
        ),
        "no file is opened but those that a model has, none of which is a pickle",
    ),
    "model: unknown keys": (
        config_of_model("comment", {"a": 1}),
        "later versions may say more; what is not known is not looked at",
    ),
    "index: more hits than spots": (
        lambda world: sl.tl.SealIndex.load(world.index_folder).search(np.ones((1, 192)), n_hits=10**12),
        "all spots are returned",
    ),
    "genes: more than there are": (
        lambda world: sl.pp.select_genes(world.section, 10**12),
        "all are taken, with a warning",
    ),
    "counts: a spot without any": (
        lambda world: (
            world.section.tables["table"].layers["counts"].__setitem__(3, 0),
            sl.pp.normalize(world.section, layer="counts"),
        ),
        "its rows are zero, with a warning that names it",
    ),
    "training: more spots in a step than there are": (
        finetune(params={"epochs": 1, "views": 1, "cache": "none", "batch_size": 10**9}, readout="head"),
        "a step takes what there is",
    ),
    "index: embeddings that are missing, or zero": (
        lambda world: (
            world.section.tables["table"].obsm["X_seal"].__setitem__(0, np.nan),
            world.section.tables["table"].obsm["X_seal"].__setitem__(1, 0),
            sl.tl.build_index(world.section, world.work / "gaps"),
        ),
        "spots without a usable crop have none; they are left out",
    ),
    "genes: names with slashes and HTML": (
        arrays(genes=[f"<b>G{i}</b>/.." for i in range(3)]),
        "names are shown as they are, and stored in cells, not as names of slots",
    ),
    "section: names in any script": (arrays(section="肿瘤"), "zarr, HDF5 and every file system know them"),
    "gene sets: HTML and formulas as names": (
        gene_sets("<script>alert(1)</script>\tx\tERBB2\tEPCAM\n=cmd|'/c calc'!A0\tx\tERBB2\n"),
        "names are data: HTML escapes them, and no spreadsheet is written",
    ),
    "gene sets: lines that end in CR": (
        lambda world: gene_sets("a\tx\t{}\t{}\rb\tx\t{}\t{}\r".format(*world.model.panel.genes))(world),
        "old editors of Macs write them",
    ),
    "query: many deviations": (
        lambda world: retrieve(world.model.panel.genes[0], n_std=1e30)(world),
        "a direction; its length does not count",
    ),
}


@pytest.mark.parametrize("name", list(TAKEN))
def test_taken(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    call, reason = TAKEN[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call(World(built, tmp_path))
    assert reason
    assert not list(tmp_path.rglob("PWNED"))


# -- on the command line ----------------------------------------------------------------------------------------------
def refused(world: World, *arguments: str) -> str:
    done = CliRunner().invoke(cli, list(arguments))
    assert done.exit_code in (2, 3), (arguments, done.exit_code, done.output[-2000:])
    assert "Traceback" not in done.output
    assert len(done.output) < 3000
    return done.output


@pytest.mark.parametrize(
    "content",
    ["epochs: !!python/object/apply:os.system ['touch PWNED']\n", bomb(), "epochs: " + "[" * 3000 + "]" * 3000,
     "epochs: 1\nepochs: 7\nencoder: x\n", "- 1\n", "evil: 1\n", "\x01"],
)  # fmt: skip
def test_config_files(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.chdir(tmp_path)
    world = World(built, tmp_path)
    path, section = str(world.file("config.yaml", content)), str(built / "section.zarr")
    refused(world, "finetune", section, "--encoder", "x", "--out", "run", "--config", path)
    if content.startswith("epochs"):
        refused(world, "finetune", section, "--encoder", "x", "--out", "run", "--params", content)
    assert not list(tmp_path.rglob("PWNED"))
    assert not (tmp_path / "run").exists()


def test_commands_write_nowhere_else(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    world, section = World(built, tmp_path), built / "section.zarr"
    before = sorted(built.rglob("*"))
    model = str(world.model_folder)
    manifest = world.file("m.csv", f"path,section\n{section},..\n{section},.\n")
    refused(world, "prepare", str(manifest), "--out", "prepared", "--crop-px", "32")
    manifest = world.file("m.csv", f"path,section\n{section},{'a' * 300}\n")
    refused(world, "prepare", str(manifest), "--out", "prepared", "--crop-px", "32")
    manifest = world.file("s.csv", f"path,slide,patient\n{section},../../evil,p\n")
    refused(world, "slides", "embed", str(manifest), "--model", model, "--out", "embedded")
    assert sorted(built.rglob("*")) == before
    assert not [p for p in tmp_path.rglob("*") if "evil" in p.name]


# -- what could take the process down --------------------------------------------------------------------------------
ALONE = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1 << 36, 1 << 36))
import sealst as sl
try:
    {call}
except sl.SealstError as error:
    print("refused:", error)
"""


def alone(call: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", ALONE.format(call=call)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("header", [struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 8) + b"{" * 8, b""])
def test_headers_of_tensors(built: Path, tmp_path: Path, header: bytes) -> None:
    world = World(built, tmp_path)
    (world.model_folder / "heads.safetensors").write_bytes(header)
    assert "refused: Weights in" in alone(f"sl.models.load({str(world.model_folder)!r})")


def test_an_index_of_faiss_is_read_only_as_it_was_written(tmp_path: Path, built: Path) -> None:
    pytest.importorskip("faiss")
    folder = tmp_path / "flat"
    section = sl.io.read(built / "section.zarr")
    index = sl.tl.build_index(section, folder, kind="flat")
    expected = index.search(np.ones((1, index.dim)), n_hits=3)["similarity"].to_numpy()
    (path,) = folder.glob("faiss-*")
    content = bytearray(path.read_bytes())
    content[20:28] = struct.pack("<q", 2**60)
    good = path.read_bytes()
    path.write_bytes(bytes(content))
    said = alone(f"sl.tl.SealIndex.load({str(folder)!r})")
    assert f"{path.name} is not the file that was written" in said
    # A folder of an earlier version has no digest: its file stays closed, and search compares with every vector.
    config = json.loads((folder / "config.json").read_text())
    del config["hashes"]
    (folder / "config.json").write_text(json.dumps(config))
    old = sl.tl.SealIndex.load(folder)
    # Spots of equal similarity may change places.
    found = old.search(np.ones((1, index.dim)), n_hits=3)["similarity"].to_numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    path.write_bytes(good)


def test_bombs_stay_small(tmp_path: Path) -> None:
    with pytest.raises(sl.DataError, match="stands for more than 100,000 values"):
        parse_yaml(bomb())
    with pytest.raises(sl.DataError, match="more than 30 deep"):
        parse_yaml("[" * 5000 + "]" * 5000)
    assert parse_yaml("a: &x [1, 2]\nb: *x\nc: 1e-3") == {"a": [1, 2], "b": [1, 2], "c": 1e-3}
