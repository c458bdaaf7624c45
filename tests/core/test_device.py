from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch

import sealst as sl
from sealst._core.device import (
    PRECISIONS,
    autocast,
    cuda_dtype,
    n_devices,
    processes,
    resolve_device,
    training_autocast,
)
from sealst._core.seeds import mixed_seed, seeded


def test_seeded_repeats_and_restores():
    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    with seeded(5):
        first = draw()
    with seeded(5):
        assert draw() == first

    def fail():
        with seeded(5):
            draw()
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert draw() == expected


def test_mixed_seeds_differ_by_every_fact_and_stay():
    assert mixed_seed(1, "fit") == mixed_seed(1, "fit") == 1812853868751294527
    assert len({mixed_seed(1, "fit"), mixed_seed(2, "fit"), mixed_seed(1, "order"), mixed_seed(1)}) == 4


def test_device_names():
    assert resolve_device("cpu") == torch.device("cpu")
    with sl.settings.override(device="cpu"):
        assert resolve_device() == torch.device("cpu")
    with pytest.raises(sl.DataError, match="found 'gpu'"):
        resolve_device("gpu")


@pytest.mark.parametrize(
    ("precision", "fast", "slow"),
    [
        ("auto", torch.bfloat16, torch.float32),
        ("float32", torch.float32, torch.float32),
        ("float16", torch.float16, torch.float16),
        ("bfloat16", torch.bfloat16, torch.float16),
    ],
)
def test_precision_on_cuda(precision, fast, slow):
    assert cuda_dtype(precision, bf16=True) is fast
    assert cuda_dtype(precision, bf16=False) is slow
    with warnings.catch_warnings():
        # torch says so where there is no CUDA device, and keeps the type.
        warnings.filterwarnings("ignore", "User provided device_type|CUDA is not available")
        context = autocast(torch.device("cuda"), precision)
    here = fast if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False) else slow
    if here is torch.float32:
        assert not context._enabled
    else:
        assert context.fast_dtype is here
        assert context._enabled == torch.cuda.is_available()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precision_is_full_on_the_cpu(precision):
    with torch.autocast("cpu", dtype=torch.bfloat16), autocast(torch.device("cpu"), precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32


def test_unknown_precision():
    with pytest.raises(sl.DataError, match="`precision` must be one of 'auto'.*found 'fp16'"):
        cuda_dtype("fp16", bf16=True)


@pytest.mark.parametrize(
    ("devices", "kind", "n"),
    [
        *((1, "cpu", 1), (3, "cpu", 3), ("3", "cpu", 3), ("auto", "cpu", 1)),
        *((4, "cuda", 4), ("4", "cuda", 4), (-1, "cuda", 6), ("-1", "cuda", 6), ("auto", "cuda", 6)),
        *(([2, 3], "cuda", 2), ((5,), "cuda", 1), ("0,1", "cuda", 2), ("3,", "cuda", 1)),
        *(("auto", "mps", 1), (-1, "mps", 1)),
    ],
)
def test_devices_are_counted_as_lightning_counts_them(devices, kind, n, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 6)
    assert n_devices(devices, kind) == n
    assert processes(devices, 2, kind)[0] == 2 * n


def test_all_gpus_are_one_at_a_prompt(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 6)
    monkeypatch.setattr("sys.ps1", ">>> ", raising=False)
    assert (n_devices("auto", "cuda"), n_devices(-1, "cuda")) == (1, 6)


@pytest.mark.parametrize("devices", [0, -2, True, "two", "", "0,a", None, 1.0, [0.5], ["0"]])
def test_devices_that_are_none(devices):
    with pytest.raises(sl.DataError, match=r"`trainer_kwargs\['devices'\]` .*such as \[0, 1\]"):
        n_devices(devices, "cuda")


@pytest.mark.parametrize("devices", [-1, [0, 1], "0,1"])
def test_processors_have_no_numbers(devices):
    with pytest.raises(sl.DataError, match="names no device of kind 'cpu'"):
        n_devices(devices, "cpu")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (8, 0)),
        ({"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "6", "SLURM_PROCID": "3", "SLURM_NTASKS": "6"}, (6, 5)),
        ({"LOCAL_RANK": "3"}, (8, 3)),
        ({"NODE_RANK": "1", "LOCAL_RANK": "2"}, (8, 6)),
        ({"GROUP_RANK": "1", "LOCAL_RANK": "2"}, (8, 6)),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "7", "SLURM_JOB_NAME": "train"}, (8, 7)),
        # `srun --pty bash`: Lightning starts the others, all of which inherit the shell's number.
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "bash", "LOCAL_RANK": "2"}, (8, 2)),
        ({"SLURM_NTASKS": "9", "SLURM_PROCID": "5", "SLURM_JOB_NAME": "interactive"}, (8, 0)),
        ({"SLURM_PROCID": "5"}, (8, 0)),
    ],
)
def test_the_number_of_a_process_is_its_launchers(environment, expected, monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "SLURM_NTASKS",
                 "SLURM_JOB_NAME"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes(4, 2) == expected
    assert processes(1, 1) == ((1, 0) if "WORLD_SIZE" not in environment else expected)


@pytest.mark.parametrize(
    ("environment", "name", "devices", "expected"),
    [
        ({}, "auto", 4, "cuda"),
        ({"LOCAL_RANK": "2"}, "auto", 4, "cuda:2"),
        ({"LOCAL_RANK": "2"}, "cuda", 4, "cuda:2"),
        ({"LOCAL_RANK": "2"}, "cuda:1", 4, "cuda:1"),
        ({"LOCAL_RANK": "2"}, "cpu", 4, "cpu"),
        ({"LOCAL_RANK": "1"}, "cuda", "0,3", "cuda:3"),
        ({"LOCAL_RANK": "7"}, "cuda", 8, "cuda"),
        ({"SLURM_NTASKS": "4", "SLURM_LOCALID": "3", "SLURM_JOB_NAME": "train"}, "cuda", 4, "cuda:3"),
        ({"SLURM_NTASKS": "4", "SLURM_LOCALID": "3", "SLURM_JOB_NAME": "bash"}, "cuda", 4, "cuda"),
    ],
)
def test_every_process_has_a_gpu_of_its_own(environment, name, devices, expected, monkeypatch):
    for variable in ("LOCAL_RANK", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_JOB_NAME"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert resolve_device(name, devices) == torch.device(expected)


@pytest.mark.parametrize("name", ["cuda:4", "cuda:77"])
def test_a_gpu_that_is_not_there_is_refused(name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(sl.DataError, match=rf"`device` is '{name}', but torch finds 'cuda:0', .*'cuda:3'; use one"):
        resolve_device(name)


@pytest.mark.parametrize(
    ("precision", "cpu", "cuda"),
    [
        ("auto", torch.float32, None),
        ("32-true", torch.float32, torch.float32),
        ("64-true", torch.float32, torch.float32),
        ("bf16-mixed", torch.bfloat16, torch.bfloat16),
        ("bf16-true", torch.bfloat16, torch.bfloat16),
        # As Lightning does on CPUs.
        ("16-mixed", torch.bfloat16, torch.float16),
    ],
)
def test_what_belongs_to_a_training_runs_in_its_precision(precision, cpu, cuda):
    with training_autocast(torch.device("cpu"), precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is cpu
    if cuda not in (None, torch.float32):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "User provided device_type|CUDA is not available")
            assert training_autocast(torch.device("cuda"), precision).fast_dtype is cuda
