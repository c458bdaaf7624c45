from __future__ import annotations

import os
import re
import subprocess
import sys

import pandas as pd
import pytest

from sealst._version import __version__


def sealst(*arguments: str, **options):
    code = "import sys; sys.argv[0] = 'sealst'; from sealst.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, **options)


def test_version_and_help():
    done = sealst("--version")
    assert (done.returncode, done.stdout.split()[-1]) == (0, __version__)
    done = sealst("demo", "--help")
    assert done.returncode == 0
    assert "third is held out" in done.stdout
    assert "Exit codes: 0 done, 1 unexpected failure, 2 wrong usage, 3 input refused" in sealst("-h").stdout.replace(
        "\n  ", " "
    )


def test_wrong_usage_is_exit_code_2():
    done = sealst("demo", "--sead", "1")
    assert done.returncode == 2
    assert "No such option" in done.stderr
    assert sealst("dmo").returncode == 2


def test_refused_input_is_exit_code_3_with_a_message_and_no_trace(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    done = sealst("demo", "--out", str(tmp_path / "mine"), "--overwrite")
    assert done.returncode == 3
    assert "is not the result of a demo; name another folder with --out" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


@pytest.mark.slow
def test_demo_makes_a_self_contained_report(tmp_path):
    import spatialdata as sd

    import sealst as sl

    own = os.environ | {"SEALST_CACHE": str(tmp_path / "cache")}
    done = sealst("demo", "--out", str(tmp_path / "out"), "--quiet", timeout=900, env=own)
    assert done.returncode == 0, done.stderr
    methods = re.findall(r"^ *([a-z+, ]+?) +(?=[\d.]|$)", done.stdout, re.MULTILINE)
    assert {"adapted + ridge", "seal prediction", "adapted, by embedding"} <= set(methods)
    assert len(set(methods)) == len(methods), "one line per method"
    assert not (tmp_path / "cache" / "tokens").exists(), "nobody trains on the demo's sections again"
    out = tmp_path / "out"
    html = (out / "report.html").read_text(encoding="utf-8")
    assert html.count("data:image/webp;base64,") == 6
    assert len(html) < 2_500_000, "small enough for a mail"
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", html)
    rows = pd.read_csv(out / "evaluation.csv").dropna(subset="section")
    table = rows.set_index(["method", "genes", "metric"])["value"]
    assert table["adapted + ridge", "hvg50", "pearson"] > 0.3
    sdata = sd.read_zarr(out / "held_out.zarr")
    assert {"X_seal", "seal_expression", "seal_pathways"} <= set(sdata.tables["table"].obsm)
    assert len(sl.models.load(out / "run" / "model", device="cpu").panel) == 400
    again = sealst("demo", "--out", str(out))
    assert again.returncode == 3
    assert "holds an earlier demo; replace it with --overwrite" in again.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
