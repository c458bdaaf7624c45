from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

import sealst as sl
from sealst.cli._main import cli


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("check") / "s1.zarr"
    sl.datasets.synthetic(seed=1).write(path)
    return path


def run(*arguments):
    return CliRunner().invoke(cli, ["check", *map(str, arguments)])


def test_a_good_section_is_reported_with_exit_code_0(store):
    done = run(store)
    assert done.exit_code == 0, done.output
    assert "zarr (spatialdata.read_zarr)" in done.output
    assert "No problems found" in done.output


def test_errors_give_exit_code_3_and_json(store):
    done = run(store, "--mpp", "2.0", "--json")
    assert done.exit_code == 3
    report = json.loads(done.output)
    assert report["ok"] is False
    assert report["format"].startswith("zarr")
    (problem,) = [p for p in report["problems"] if p["level"] == "error"]
    assert "Contradictory scale" in problem["text"]
    assert {"region", "topic", "name", "value"} == set(report["facts"][0])
    assert any(isinstance(fact["value"], int | float) for fact in report["facts"]), "numbers stay numbers"


def test_an_unknown_folder_is_an_error_too(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    done = run(tmp_path)
    assert done.exit_code == 3
    assert "is not recognised; found 'notes.txt'" in done.output


def test_wrong_usage_is_exit_code_2(tmp_path):
    assert run(tmp_path / "absent").exit_code == 2
    assert run(tmp_path, "--mpp", "small").exit_code == 2
    assert "µm per pixel" in run("--help").output
