"""Options follow the functions they call, without importing them."""

from __future__ import annotations

import inspect
import json
import operator
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

import sealst as sl
from sealst.cli._common import Answer, SealstCommand
from sealst.cli._from_signature import argument, options_of
from sealst.cli._main import cli
from sealst.cli._types import EXISTING, EXISTING_FILE, Genes, YamlMapping

FUNCTIONS = [
    "datasets.synthetic", "io.check", "io.read", "io.read_bags", "pp.harmonize_genes", "pp.normalize", "pp.pair_crops",
    "pp.quality", "pp.tile", "tl.build_index", "tl.embed", "tl.embed_slides", "tl.evaluate", "tl.finetune",
    "tl.fit_slide", "tl.pathways", "tl.predict", "tl.predict_slide", "tl.retrieve",
]  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS)
def test_what_is_read_from_the_source_is_the_signature(function):
    for name, parameter in inspect.signature(operator.attrgetter(function)(sl)).parameters.items():
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
            found = argument(function, name)
            assert found.required == (parameter.default is inspect.Parameter.empty), name
            assert found.required or found.default == parameter.default, name
            assert found.text[0].strip(), f"{function} says nothing about {name}"


def options(*wanted, **changes):
    @click.command(cls=SealstCommand)
    @options_of(*wanted, **changes)
    def toy(**given):
        return Answer(given, "")

    return {p.name: p for p in toy.params}, toy


def test_types_and_defaults_follow_annotations():
    found, toy = options(
        "tl.finetune", "encoder", "pretrained", "n_genes", "crop_um", "adapter", "params", "validation", "warmup",
        "include",
    )  # fmt: skip
    assert found["encoder"].required
    assert found["pretrained"].secondary_opts == ["--no-pretrained"]
    assert found["n_genes"].type.min == 1
    assert (found["crop_um"].type, found["crop_um"].multiple) == (click.FLOAT, True)
    assert (isinstance(found["adapter"].type, YamlMapping), found["adapter"].type.word) == (True, True)
    assert (isinstance(found["params"].type, YamlMapping), found["params"].type.word) == (True, False)
    assert (found["validation"].type, found["validation"].multiple) == (EXISTING, True)
    assert (found["warmup"].type, found["warmup"].multiple) == (EXISTING_FILE, True)
    assert isinstance(found["include"].type, Genes)
    given = json.loads(CliRunner().invoke(toy, ["--encoder", "e", "--include", "A,B", "--json"]).stdout)
    assert given == {
        "encoder": "e", "pretrained": True, "n_genes": 2000, "crop_um": [], "adapter": "lora", "params": None,
        "validation": [], "warmup": [], "include": ["A", "B"],
    }  # fmt: skip
    several, _ = options("pp.pair_crops", "crop_um")
    assert (several["crop_um"].multiple, several["crop_um"].default) == (True, (112.0,))
    count, _ = options("tl.embed_slides", "n_workers", "frozen", "overwrite")
    assert (count["n_workers"].type.min, count["frozen"].default, count["overwrite"].default) == (0, None, False)
    assert list(options("pp.normalize", "grid")[0]["grid"].type.choices) == ["auto", "hex", "square"]
    constant, _ = options("tl.retrieve", "n_hits", "key", "key_added")
    assert [constant[n].default for n in ("n_hits", "key", "key_added")] == [10, "X_seal", "seal_similarity"]


def test_help_is_the_docstrings_without_its_markup():
    found, _ = options("tl.embed_slides", "step_um", "prune", "genes", tiles_per_task={"sentences": 2})
    assert found["step_um"].help == ("Distance of neighbouring tiles in µm; by default --crop-um, so that they touch.")
    assert found["prune"].help.startswith("Remove the results")
    assert found["genes"].help.endswith("By commas, or a text file with one per line.")
    assert found["tiles_per_task"].help.startswith("Tiles of a range. Memory and")
    assert options("tl.embed", key_added={"help": "Slot."})[0]["key_added"].help == "Slot."


def test_an_argument_that_is_renamed_is_missed():
    with pytest.raises(LookupError, match="sealst.tl.embed has no argument 'crop_mm'"):
        options("tl.embed", "crop_mm")
    with pytest.raises(LookupError, match="does not define 'encode'"):
        options("tl.encode", "crop_um")


def test_other_flags():
    found, _ = options("pp.harmonize_genes", gene_table={"flag": "--names"})
    assert found["gene_table"].opts == ["--names"]


def test_pages_of_help_import_no_torch():
    code = (
        "import sys; from click.testing import CliRunner; from sealst.cli._main import cli; "
        "pages = [CliRunner().invoke(cli, [name, '--help']).exit_code for name in cli.commands]; "
        "print(sum(pages), sorted({'torch', 'pandas', 'spatialdata'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0 []"
    assert len(cli.commands) > 10
