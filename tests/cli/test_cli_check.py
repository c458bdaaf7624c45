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
    result = json.loads(done.output)
    assert result["ok"] is False
    (report,) = result["sections"]
    assert (report["section"], report["ok"]) == ("s1", False)
    assert report["format"].startswith("zarr")
    (problem,) = [p for p in report["problems"] if p["level"] == "error"]
    assert "Contradictory scale" in problem["text"]
    assert {"region", "topic", "name", "value"} == set(report["facts"][0])
    assert any(isinstance(fact["value"], int | float) for fact in report["facts"]), "numbers stay numbers"


def test_the_reader_is_told_what_it_needs(store, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "a_raw_feature_bc_matrix.h5").touch()
    (tmp_path / "a" / "a_tissue_positions.csv").touch()
    assert "pass `counts='raw'`" in run(tmp_path / "a").output
    done = run(tmp_path / "a", "--option", "counts=raw", "--option", "sample=a")
    assert "a_raw_feature_bc_matrix.h5 could not be read" in done.output
    assert "is not recognised" not in run(tmp_path / "a", "--format", "visium").output
    taken = run(store, "--option", "mpp=2")
    assert taken.exit_code == 2
    assert "--option mpp=...: it is --mpp." in taken.output


def test_several_sections_are_checked_each(store, tmp_path):
    folder = run(store.parent, "--json")
    assert folder.exit_code == 0, folder.output
    assert [one["section"] for one in json.loads(folder.output)["sections"]] == ["s1"]
    (tmp_path / "cohort.csv").write_text(f"path,section,mpp\n{store},a,\n{tmp_path / 'b.zarr'},b,2.0\n")
    (tmp_path / "b.zarr").symlink_to(store)
    done = run(tmp_path / "cohort.csv", "--json")
    assert done.exit_code == 3
    found = json.loads(done.output)["sections"]
    assert [(one["section"], one["ok"]) for one in found] == [("a", True), ("b", False)]
    assert "Contradictory scale" in str(found[1]["problems"])
    # A section that is not one stops no other.
    (tmp_path / "other").mkdir()
    mixed = run(tmp_path / "other", store)
    assert mixed.exit_code == 3
    assert "is not recognised; found an empty folder" in mixed.output
    assert "1 of 2 sections have no errors." in mixed.output
    picture = run(store.parent, "--image", tmp_path / "cohort.csv")
    assert picture.exit_code == 2
    assert "--image is the picture of one section" in picture.output


def test_an_unknown_folder_is_an_error_too(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    done = run(tmp_path)
    assert done.exit_code == 3
    assert "is not recognised; found 'notes.txt'" in done.output


def test_wrong_usage_is_exit_code_2(tmp_path):
    assert run(tmp_path / "absent").exit_code == 2
    assert run(tmp_path, "--mpp", "small").exit_code == 2
    assert "µm per pixel" in run("--help").output
