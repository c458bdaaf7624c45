"""The command, stopped and started again, in processes of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from spatialdata import SpatialData

import sealst as sl
from sealst._process.locks import hold_run
from sealst.tl._finetune.run_folder import open_run

OPTIONS = {
    "encoder": "vit_tiny_patch16_224", "pretrained": False, "gene_encoder": {"kind": "vae", "hidden": [16]},
    "n_genes": 8, "seed": 0, "device": "cpu", "readout": "head",
    "params": {"epochs": 40, "batch_size": 16, "views": 1, "cache": "none", "lr": 1e-3, "warmup_epochs": 0},
}  # fmt: skip


@pytest.fixture
def command(ready, tmp_path):
    """Start `sealst finetune` on two small sections."""
    for name, patient, seed in (("a", "p1", 0), ("b", "p2", 1)):
        section: SpatialData = ready(section=name, patient=patient, seed=seed)
        section.write(tmp_path / "sections" / f"{name}.zarr")
    (tmp_path / "finetune.yaml").write_text(yaml.safe_dump(OPTIONS))
    started = []

    def start(*more: str) -> subprocess.Popen[str]:
        options = [str(tmp_path / "sections"), "--config", str(tmp_path / "finetune.yaml"), *more]
        code = "import sys; sys.argv[0] = 'sealst'; from sealst.cli import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", code, "finetune", *options], text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_stopped_training_goes_on(command, tmp_path, name, code):
    run = tmp_path / "run"
    first = command("--out", str(run))
    wait_for(run / "checkpoint.pt", first)
    # Held still while the other command starts, which takes longer than the training does.
    first.send_signal(signal.SIGSTOP)
    _, said = command("--out", str(run), "--resume").communicate(timeout=900)
    assert f"is in use by process {first.pid} on" in said
    first.send_signal(getattr(signal, name))
    first.send_signal(signal.SIGCONT)
    out, said = first.communicate(timeout=900)
    assert (first.returncode, out) == (code, "")
    assert said.endswith(f"Stopped ({name}).\n")
    assert "Traceback" not in said
    assert (run / "checkpoint.pt").is_file()
    assert not (run / "model").exists()
    assert not list(run.glob(".cache-*"))
    again = command("--out", str(run), "--resume")
    _, said = again.communicate(timeout=900)
    assert again.returncode == 0, said
    assert "resuming stage 'align' after step" in said
    assert (run / "model" / "config.json").is_file()


def test_a_living_run_is_not_replaced(tmp_path, monkeypatch):
    from click.testing import CliRunner

    from sealst.cli import _finetune
    from sealst.cli._main import cli

    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    monkeypatch.setattr(_finetune, "_train", lambda *a, **k: pytest.fail("training started"))
    with hold_run(run):
        asked = ["finetune", str(tmp_path), "--encoder", "uni2-h", "--out", str(run), "--overwrite"]
        done = CliRunner().invoke(cli, asked)
    assert done.exit_code != 0
    assert "is in use by process" in str(done.output)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_run_that_was_killed_while_its_first_file_was_written_is_none(tmp_path):
    (tmp_path / ".run.json-0123abcd").mkdir()
    for resume in (False, True):
        with open_run(tmp_path, resume=resume, rank=0) as folder:
            assert folder == tmp_path
    (tmp_path / ".run.json-notes").touch()
    with pytest.raises(sl.DataError, match="is not empty"), open_run(tmp_path, resume=False, rank=0):
        pass
