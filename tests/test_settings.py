"""Settings: checked when assigned, read from the environment, restored after `override`."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import sealst as sl
from sealst._core.cores import n_threads
from sealst._core.device import autocast, cuda_dtype
from sealst._settings import _CHECKS, _VARIABLES, PRECISIONS, VERBOSITIES, Settings


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("cache_dir", 3, "a folder, found 3"),
        ("cache_dir", __file__, "a folder, not a file"),
        ("device", "gpu", "'auto' or a torch device such as 'cpu'.*found 'gpu'"),
        ("precision", "fp8", "one of 'auto', '32-true', '16-mixed', 'bf16-mixed', found 'fp8'"),
        ("progress", "maybe", "True or False, found 'maybe'"),
        ("progress", 2, "True or False"),
        ("batch_size", 0, "a whole number of at least 1, found 0"),
        ("batch_size", 2.5, "a whole number"),
        ("batch_size", True, "a whole number"),
        ("seed", -1, "a whole number of at least 0, found -1"),
        ("n_jobs", 0, "None, -1 .all cores. or a whole number of at least 1, found 0"),
        ("verbosity", "loud", "one of 'error', 'warning', 'info', 'debug', found 'loud'"),
    ],
)
def test_wrong_values_are_refused_and_the_old_one_stays(name, value, match):
    before = getattr(sl.settings, name)
    with pytest.raises(sl.DataError, match=rf"`settings.{name}` must be {match}"):
        setattr(sl.settings, name, value)
    assert getattr(sl.settings, name) == before


def test_a_misspelt_name_is_refused():
    with pytest.raises(AttributeError, match="settings has no 'devcie'; known: .*'device'"):
        sl.settings.devcie = "cpu"
    with (
        pytest.raises(AttributeError, match="settings has no .'devcie'.; known: .*'device'"),
        sl.settings.override(devcie=1),
    ):
        pass


def test_values_become_what_calls_expect(tmp_path):
    given = {"cache_dir": str(tmp_path), "device": torch.device("cuda", 1), "precision": "bf16", "seed": np.int64(3)}
    with sl.settings.override(**given, n_jobs="auto", verbosity="WARNING"):
        assert (sl.settings.cache_dir, sl.settings.device) == (tmp_path, "cuda:1")
        assert (sl.settings.precision, sl.settings.verbosity, sl.settings.n_jobs) == ("bf16-mixed", "warning", None)
        assert type(sl.settings.seed) is int


def test_override_restores_everything_when_one_value_is_wrong():
    before = repr(sl.settings)
    with pytest.raises(sl.DataError, match="batch_size"), sl.settings.override(seed=5, verbosity="debug", batch_size=0):
        pass
    assert repr(sl.settings) == before


def test_every_setting_is_checked_documented_and_has_a_variable():
    names = set(Settings.__dataclass_fields__)
    assert names == set(_CHECKS) == set(_VARIABLES)
    for name, variable in _VARIABLES.items():
        assert f"\n    {name}\n" in Settings.__doc__
        assert variable in Settings.__doc__


def imported(code: str, **variables: str) -> subprocess.CompletedProcess:
    """Run code in a process of its own, with environment variables."""
    environ = {k: v for k, v in os.environ.items() if k not in _VARIABLES.values()} | variables
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ)


def test_the_environment_sets_defaults(tmp_path):
    code = "import sealst as sl, logging; s = sl.settings; print(s.device, s.seed, s.progress, s.n_jobs, s.precision)"
    code += "; print(s.cache_dir, logging.getLogger('sealst').level)"
    done = imported(
        code, SEALST_DEVICE="cpu", SEALST_SEED="7", SEALST_PROGRESS="no", SEALST_N_JOBS="-1", SEALST_PRECISION="32",
        SEALST_CACHE=str(tmp_path), SEALST_VERBOSITY="error",
    )  # fmt: skip
    assert done.stdout.split() == ["cpu", "7", "False", "-1", "32-true", str(tmp_path), str(logging.ERROR)]


def test_a_wrong_variable_is_named():
    done = imported("import sealst", SEALST_SEED="many")
    assert "a whole number of at least 0, found 'many'. The environment variable SEALST_SEED says so" in done.stderr


def test_a_level_that_the_application_chose_stays():
    code = (
        "import logging; logging.getLogger('sealst').setLevel('DEBUG'); import sealst; print(sealst.settings.verbosity)"
    )
    assert imported(code).stdout.strip() == "debug"


@pytest.mark.parametrize("verbosity", VERBOSITIES)
def test_verbosity_decides_what_is_logged(verbosity, caplog):
    logger = logging.getLogger("sealst")
    with sl.settings.override(verbosity=verbosity):
        for level in VERBOSITIES:
            logger.log(logging.getLevelName(level.upper()), level)
    assert caplog.messages == list(VERBOSITIES[: VERBOSITIES.index(verbosity) + 1])


def test_n_jobs_is_the_number_of_threads():
    for given, expected in ((3, 3), (None, min(8, len(os.sched_getaffinity(0)))), (-1, len(os.sched_getaffinity(0)))):
        with sl.settings.override(n_jobs=given):
            assert n_threads() == expected


def test_precision_counts_before_that_of_the_encoder():
    a, cpu = torch.eye(2), torch.device("cpu")
    found = {}
    for precision in PRECISIONS:
        with sl.settings.override(precision=precision), autocast(cpu, "float16"):
            found[precision] = (a @ a).dtype
    expected = {"auto": torch.float32, "32-true": torch.float32, "16-mixed": torch.float16}
    assert found == expected | {"bf16-mixed": torch.bfloat16}
    with sl.settings.override(precision="32-true"):
        assert cuda_dtype("float16", bf16=True) is torch.float32


def test_training_takes_the_precision_unless_it_states_one():
    from sealst._train.params import train_params

    with sl.settings.override(precision="bf16-mixed"):
        assert train_params(None).precision == "bf16-mixed"
        assert train_params({"precision": "32-true"}).precision == "32-true"
    assert train_params(None).precision == "auto"
