"""Slides on several processes, which die at random points."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import tifffile

import sealst as sl

distributed = pytest.importorskip("distributed")

ENCODER = "vit_tiny_patch16_224"
OPTIONS = {"crop_um": 64, "crop_px": 32, "step_um": 32, "pretrained": False, "device": "cpu", "tiles_per_task": 16}
#: what a job does, with the folder, the number of workers and the options in its arguments
JOB = """
import json, sys
import sealst as sl
if __name__ == "__main__":
    folder, n_workers, options = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    out = folder + "/job"
    sl.tl.embed_slides(folder + "/manifest.csv", "vit_tiny_patch16_224", out, n_workers=n_workers, **options)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four slides of some 80 tiles in six ranges each, and what an undisturbed run makes of them."""
    folder = tmp_path_factory.mktemp("slides")
    for seed in range(4):
        rng = np.random.default_rng(seed)
        image = np.full((512, 512, 3), 242, dtype=np.uint8)
        grain = rng.normal(0, 30, (36, 36, 1)).repeat(10, 0).repeat(10, 1)
        image[80:440, 80:440] = np.clip(np.array([170, 110, 170]) + grain, 0, 255).astype(np.uint8)
        tifffile.imwrite(
            folder / f"s{seed}.tif", image, tile=(128, 128), photometric="rgb", resolution=(1e4, 1e4),
            resolutionunit="CENTIMETER",
        )  # fmt: skip
    names = [f"s{seed}" for seed in range(4)]
    frame = pd.DataFrame({"slide": names, "path": [f"{name}.tif" for name in names], "patient": names})
    frame.to_csv(folder / "manifest.csv", index=False)
    sl.tl.embed_slides(folder / "manifest.csv", ENCODER, folder / "whole", **OPTIONS)
    return folder


def same(one: Path, other: Path) -> None:
    """Two runs made the same tables: every tile once, each with its own embedding."""
    for name in ("s0", "s1", "s2", "s3"):
        a, b = (ad.read_h5ad(path / "slides" / f"{name}.h5ad") for path in (one, other))
        assert list(a.obs_names) == list(b.obs_names)
        assert a.obs_names.is_unique
        assert a.n_obs > 60
        # Another number of threads may sum in another order.
        np.testing.assert_allclose(a.obsm["X_seal"], b.obsm["X_seal"], atol=1e-5)
        assert np.isfinite(a.obsm["X_seal"]).all()
    pd.testing.assert_frame_equal(*(pd.read_csv(p / "manifest.csv").drop(columns="seconds") for p in (one, other)))
    assert pd.read_csv(other / "failures.csv").empty
    assert not list((other / "parts").iterdir())


class Watch(threading.Thread):
    """Counts how often each range is written, and calls a function after some of them."""

    def __init__(self, out: Path, at: set[int], call) -> None:
        super().__init__(daemon=True)
        self.out, self.at, self.call, self.ended = out, at, call, threading.Event()
        self.seen: Counter[str] = Counter()
        self._known: dict[str, int] = {}

    def run(self) -> None:
        while not self.ended.is_set():
            for path in self.out.glob("parts/*/*/[0-9]*.npz"):
                name = str(path.relative_to(self.out))
                with_time = path.stat().st_mtime_ns if path.exists() else None
                if with_time is None or self._known.get(name) == with_time:
                    continue
                self._known[name] = with_time
                self.seen[name] += 1
                if sum(self.seen.values()) in self.at:
                    self.call()
            time.sleep(0.002)


@pytest.mark.slow  # starts worker processes, and new ones for those that it kills
def test_workers_that_are_killed(folder: Path) -> None:
    from sealst.tl._slides.workers import local_cluster

    rng = np.random.default_rng(1)
    with local_cluster(distributed.LocalCluster, 2) as cluster, distributed.Client(cluster) as client:

        def kill() -> None:
            pids = [worker.pid for worker in cluster.workers.values() if worker.pid]
            os.kill(int(rng.choice(pids)), signal.SIGKILL)

        watch = Watch(folder / "killed", {2, 9}, kill)
        watch.start()
        with warnings.catch_warnings():
            warnings.simplefilter("error", sl.SealstWarning)
            sl.tl.embed_slides(
                folder / "manifest.csv", ENCODER, folder / "killed", scheduler=client, retries=3, **OPTIONS
            )
        watch.ended.set()
    assert set(watch.seen.values()) == {1}, "no range was written twice"
    same(folder / "whole", folder / "killed")


@pytest.mark.slow  # starts the job three times
def test_a_job_that_is_killed_and_started_again(folder: Path) -> None:
    rng = np.random.default_rng(0)
    out, seen = folder / "job", Counter()
    command = [sys.executable, "-c", JOB, str(folder), "0", json.dumps(OPTIONS)]
    for after in (*rng.integers(2, 8, 2), None):
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)
        kept = {str(p.relative_to(out)): p.stat().st_mtime_ns for p in out.glob("parts/*/*/[0-9]*.npz")}
        watch = Watch(out, set() if after is None else {int(after)}, partial(os.killpg, process.pid, signal.SIGKILL))
        watch._known = dict(kept)
        watch.start()
        _, errors = process.communicate(timeout=400)
        watch.ended.set()
        watch.join()
        seen += watch.seen
        assert process.returncode == (0 if after is None else -signal.SIGKILL), errors.decode()[-2000:]
    assert set(seen.values()) == {1}, "a range that was kept is not written again"
    same(folder / "whole", out)


@pytest.mark.slow  # starts two worker processes
def test_workers_of_this_machine(folder: Path, model) -> None:
    """A model in memory reaches the workers, and its file is gone afterwards."""
    manifest = pd.read_csv(folder / "manifest.csv").assign(path=lambda f: [str(folder / p) for p in f["path"]])
    here = sl.tl.embed_slides(manifest, model, folder / "here")
    there = sl.tl.embed_slides(manifest, model, folder / "there", n_workers=2, tiles_per_task=10)
    assert list(here["digest"]) == list(there["digest"])
    for name in here["slide"]:
        a, b = (ad.read_h5ad(folder / run / "slides" / f"{name}.h5ad") for run in ("here", "there"))
        assert list(a.obs_names) == list(b.obs_names)
        for key in ("X_seal", "X_frozen"):
            np.testing.assert_allclose(a.obsm[key], b.obsm[key], atol=1e-4)
    assert not list((folder / "there").glob(".job-*"))


def test_without_the_extra(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(sl.DataError, match=r'pip install "sealst\[cluster\]"'):
        sl.tl.embed_slides(folder / "manifest.csv", ENCODER, tmp_path / "out", n_workers=1, **OPTIONS)


def test_a_scheduler_that_does_not_answer(folder: Path, tmp_path: Path) -> None:
    import dask

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "500ms"}),
        pytest.raises(sl.DataError, match="No Dask scheduler answers at 'tcp://127.0.0.1:9'"),
    ):
        sl.tl.embed_slides(folder / "manifest.csv", ENCODER, tmp_path / "out", scheduler="tcp://127.0.0.1:9", **OPTIONS)
