"""What all commands share, shown on a small command of its own."""

from __future__ import annotations

import json
import logging
import operator
import subprocess
import sys
import warnings

import click
import numpy as np
import pytest
from click.testing import CliRunner

import sealst as sl
from sealst._errors import DataError, SealstWarning
from sealst._logging import logger
from sealst.cli._common import _COMMANDS, Answer, SealstCommand
from sealst.cli._main import cli
from sealst.cli._types import Genes, KeyValue, Limits, YamlMapping, merged


@click.command(cls=SealstCommand)
@click.argument("sections", nargs=-1, required=True)
@click.option("--n-genes", type=click.IntRange(min=1), default=1)
@click.option("--crop-um", type=float, multiple=True, default=(112.0,))
@click.option("--params", type=YamlMapping(), default=None)
@click.option("--pretrained/--no-pretrained", default=True)
@click.option("--fail", default=None)
def toy(fail, **options):
    """Give back its options."""
    print("a library talks")
    warnings.warn("of a library", FutureWarning, stacklevel=1)
    warnings.warn("of sealst", SealstWarning, stacklevel=1)
    if fail == "refuse":
        raise DataError("no spots here")
    if fail == "order":
        raise DataError("run `sl.pp.pair_crops(sdata)` or `sl.pp.normalize`, then `sl.tl.embed`; `sl.pp.split`")
    if fail == "bug":
        raise RuntimeError("two\nlines")
    return Answer(options | {"nan": float("nan"), "numpy": np.float32(0.5), "level": logger.level}, "for people")


def run(*arguments):
    return CliRunner().invoke(toy, [str(a) for a in arguments])


def test_stdout_holds_the_result_and_nothing_else():
    done = run("a", "b", "--json")
    result = json.loads(done.stdout)
    assert result["sections"] == ["a", "b"]
    assert result["nan"] is None
    assert result["numpy"] == 0.5
    assert "a library talks" in done.stderr
    assert "Warning: of sealst" in done.stderr
    assert "of a library" not in done.stderr
    assert run("a").stdout == "for people\n"
    assert "FutureWarning: of a library" in run("a", "-v").stderr


def test_a_refusal_that_asks_for_a_call_names_the_command():
    done = run("a", "--fail", "order")
    assert done.exit_code == 3
    last = done.stderr.splitlines()[-1]
    assert last == (
        "On the command line `sl.pp.pair_crops` is `sealst prepare`, `sl.pp.normalize` is `sealst prepare`, "
        "`sl.tl.embed` is `sealst embed`."
    )
    assert "On the command line" not in run("a", "--fail", "refuse").stderr


def test_commands_that_messages_name_are_there():
    for call, command in _COMMANDS.items():
        assert callable(operator.attrgetter(call)(sl))
        group = cli
        for word in command.split(" --")[0].split():
            group = group.commands[word]


def test_a_config_file_sets_options_and_the_command_line_wins(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(
        "sections: a\nn-genes: 5\ncrop_um: 56\npretrained: false\njson: true\nparams: {lr: 1e-3}\nfail: null\n"
    )
    from_file = json.loads(run("--config", config).stdout)
    expected = {"sections": ["a"], "n_genes": 5, "crop_um": [56.0], "pretrained": False, "params": {"lr": 0.001}}
    assert {name: from_file[name] for name in expected} == expected
    told = json.loads(
        run("b", "--n-genes", 7, "--crop-um", 1, "--crop-um", 2, "--pretrained", "--config", config).stdout
    )
    assert (told["sections"], told["n_genes"], told["crop_um"], told["pretrained"]) == (["b"], 7, [1.0, 2.0], True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_gens: 5", "sets 'n_gens', which 'toy' does not have; known: 'sections', 'n_genes'"),
        ("n_gene: 5", "Did you mean 'n_genes'?"),
        ("- a", "must hold names and values"),
        ("{", "could not be read"),
        ("n_genes: many", "c.yaml' sets 'n_genes' to 'many': expected a whole number, 1 or more."),
        ("crop-um: [56, wide]", "sets 'crop_um' to [56, 'wide']: expected a number, or a list of such values."),
        ("pretrained: perhaps", "sets 'pretrained' to 'perhaps': expected true or false."),
        ("params: fast", "sets 'params' to 'fast': expected names and values such as '{epochs: 5}'"),
        ("config: other.yaml", "sets 'config'"),
    ],
)
def test_a_wrong_config_file_is_wrong_usage(tmp_path, text, message):
    config = tmp_path / "c.yaml"
    config.write_text(text)
    done = run("a", "--config", config)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())
    assert done.stdout == ""


def test_a_wrong_value_on_the_command_line_is_named_as_there(tmp_path):
    (tmp_path / "c.yaml").write_text("crop_um: 56")
    done = run("a", "--config", tmp_path / "c.yaml", "--n-genes", "many")
    assert done.exit_code == 2
    assert "Invalid value for '--n-genes'" in done.stderr


def test_refused_input_and_unforeseen_failures_have_codes_of_their_own():
    refused = run("a", "--fail", "refuse", "--json")
    assert (refused.exit_code, refused.stdout) == (3, "")
    assert "Error: no spots here\n" in refused.stderr
    broken = run("a", "--fail", "bug")
    assert (broken.exit_code, broken.stdout) == (1, "")
    assert "Error: unexpected RuntimeError: two lines (-v shows where)" in broken.stderr
    assert "Traceback" not in broken.stderr
    assert "Traceback" in run("a", "--fail", "bug", "-v").stderr
    assert run().exit_code == 2


def test_how_much_is_said_is_restored():
    before, shown = logger.level, sl.settings.progress
    assert json.loads(run("a", "--json", "-q").stdout)["level"] == logging.WARNING
    assert json.loads(run("a", "--json", "-v").stdout)["level"] == logging.DEBUG
    assert run("a", "-q", "-v").exit_code == 2
    run("a", "-q", "--fail", "bug")
    assert (logger.level, sl.settings.progress) == (before, shown)


def test_values_of_options():
    assert KeyValue().convert("bin-um=16", None, None) == {"bin_um": 16}
    assert merged(({"a": 1}, {"a": 2, "b": 3})) == {"a": 2, "b": 3}
    assert Limits().convert("fold_fraction=:0.1", None, None) == {"fold_fraction": (None, 0.1)}
    assert Limits().convert({"tenengrad": [10, None]}, None, None) == {"tenengrad": (10.0, None)}
    assert YamlMapping(word=True).convert("lora", None, None) == "lora"
    assert YamlMapping().convert("{epochs: 5, lr: 2e-4}", None, None) == {"epochs": 5, "lr": 2e-4}
    # Longer than the name of any file may be.
    assert len(YamlMapping().convert(f"{{{', '.join(f'name_{i}: 1' for i in range(1000))}}}", None, None)) == 1000
    assert len(Genes().convert(",".join(f"GENE{i}" for i in range(1000)), None, None)) == 1000
    assert Genes().convert("A, B,A,", None, None) == ["A", "B"]


def test_genes_and_mappings_from_files(tmp_path):
    (tmp_path / "genes.txt").write_text("ERBB2\n\nCD3E\n")
    (tmp_path / "params.yaml").write_text("epochs: 3\n")
    assert Genes().convert(str(tmp_path / "genes.txt"), None, None) == ["ERBB2", "CD3E"]
    assert YamlMapping().convert(str(tmp_path / "params.yaml"), None, None) == {"epochs": 3}


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (KeyValue(), "bin_um", "expected NAME=VALUE"),
        (Limits(), "tenengrad=10", "expected METRIC=LOW:HIGH"),
        (Limits(), "tenengrad=low:", "limits must be numbers"),
        (YamlMapping(), "lora", "expected names and values"),
        (YamlMapping(word=True), "[1, 2]", "expected a name or names and values"),
        (Genes(), " , ", "names no gene"),
        (Genes(), [], "names no gene"),
    ],
)
def test_wrong_values_of_options(kind, text, message):
    with pytest.raises(click.BadParameter, match=message.replace("[", r"\[")):
        kind.convert(text, None, None)


def test_help_is_fast_and_teaches():
    heavy = "{'torch', 'pandas', 'anndata', 'spatialdata', 'scanpy'}"
    code = f"import sys; from sealst.cli import main; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    for name, command in cli.commands.items():
        page = " ".join(CliRunner().invoke(cli, [name, "--help"]).stdout.split())
        assert f"`sealst {name}" in page, f"{name} --help has no example"
        assert "Exit codes" in page
        assert isinstance(command, SealstCommand | click.Group)
        assert all(p.help for p in command.params if isinstance(p, click.Option)), name
