"""Process-wide defaults."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sealst._errors import DataError
from sealst._files import absolute
from sealst._validate import shown, whole

#: names of `Settings.precision`, in Lightning's words
PRECISIONS = ("auto", "32-true", "16-mixed", "bf16-mixed")
#: other names of them
_PRECISION_NAMES = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
#: levels of `Settings.verbosity`, from the quietest
VERBOSITIES = ("error", "warning", "info", "debug")

_DEVICE = re.compile(r"auto|(cpu|cuda|mps|xpu|hpu)(:\d+)?")
_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}

_log = logging.getLogger("sealst")


def _refuse(name: str, value: Any, expected: str) -> DataError:
    return DataError(f"`settings.{name}` must be {expected}, found {value!r}.")


def _folder(name: str, value: Any) -> Path:
    if not isinstance(value, str | os.PathLike) or not str(value).strip():
        raise _refuse(name, value, "a folder")
    path = absolute(value)
    if path.exists() and not path.is_dir():
        raise _refuse(name, value, "a folder, not a file")
    return path


def _device(name: str, value: Any) -> str:
    text = str(value)
    if not _DEVICE.fullmatch(text):
        raise _refuse(name, value, "'auto' or a torch device such as 'cpu', 'cuda', 'cuda:1' or 'mps'")
    return text


def _choice(options: tuple[str, ...], aliases: Mapping[str, str]) -> Callable[[str, Any], str]:
    def check(name: str, value: Any) -> str:
        text = str(value).lower()
        text = aliases.get(text, text)
        if text not in options:
            raise _refuse(name, value, f"one of {', '.join(map(repr, options))}")
        return text

    return check


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _BOOLEANS:
        return _BOOLEANS[value.lower()]
    raise _refuse(name, value, "True or False")


def _whole(least: int) -> Callable[[str, Any], int]:
    def check(name: str, value: Any) -> int:
        try:
            number = int(value) if isinstance(value, str) else value.__index__()
        except (AttributeError, ValueError):
            number = least - 1
        if isinstance(value, bool) or number < least:
            raise _refuse(name, value, f"a whole number of at least {least}")
        return number

    return check


def _jobs(name: str, value: Any) -> int | None:
    if value is None or value == "auto":
        return None
    try:
        return -1 if str(value) == "-1" else _whole(1)(name, value)
    except DataError:
        raise _refuse(name, value, "None, -1 (all cores) or a whole number of at least 1") from None


#: what values of each setting become, or an error
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "cache_dir": _folder,
    "device": _device,
    "precision": _choice(PRECISIONS, _PRECISION_NAMES),
    "progress": _flag,
    "batch_size": _whole(1),
    "seed": _whole(0),
    "n_jobs": _jobs,
    "verbosity": _choice(VERBOSITIES, {}),
}
#: environment variables that set them at import
_VARIABLES = {name: f"SEALST_{name.upper()}" for name in _CHECKS} | {"cache_dir": "SEALST_CACHE"}


def _default(name: str, otherwise: Callable[[], Any]) -> Any:
    def value() -> Any:
        variable = _VARIABLES[name]
        given = os.environ.get(variable, "")
        if not given:
            return otherwise()
        try:
            return _CHECKS[name](name, given)
        except DataError as error:
            raise DataError(f"{error} The environment variable {variable} says so; correct or unset it.") from None

    return field(default_factory=value)


def _level() -> str:
    """Verbosity that the logger has already, where the application chose one."""
    name = logging.getLevelName(_log.level).lower()
    return name if name in VERBOSITIES else "info"


@dataclass
class Settings:
    """Defaults that calls fall back to when an argument is ``None``.

    Values are checked when they are assigned. Each can also be set by an environment variable before the import.

    Attributes
    ----------
    cache_dir
        Folder for downloaded data, for tokens of frozen encoder blocks that runs share (see `sealst.tl.clear_cache`),
        and for crops that training keeps on disk while it runs (``SEALST_CACHE``; default ``~/.cache/sealst``).
    device
        ``"auto"`` (a GPU when there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"`` (``SEALST_DEVICE``).
    precision
        ``"auto"``, ``"32-true"``, ``"16-mixed"`` or ``"bf16-mixed"`` (``SEALST_PRECISION``). ``"auto"`` runs encoders
        on CUDA devices in the precision that they were published with (`EncoderSpec.precision`), trains in bf16 where
        the device is fast at it, and computes in float32 elsewhere. Another value holds on every device, wherever
        `TrainParams.precision` is ``"auto"``.
    progress
        Whether long work shows progress bars (``SEALST_PROGRESS``; default: in a terminal or a notebook). Without, it
        logs a line a minute.
    batch_size
        Crops per forward pass at inference (``SEALST_BATCH_SIZE``).
    seed
        Seed of every call and command that is given none (``SEALST_SEED``).
    n_jobs
        Threads that read crops and images. None is the cores that this process may use, at most 8, or its share of them
        where `sealst.tl.embed_slides` starts workers; -1 all of them (``SEALST_N_JOBS``). Results do not depend on it.
    verbosity
        What the logger ``sealst`` lets through: ``"error"``, ``"warning"``, ``"info"`` or ``"debug"``
        (``SEALST_VERBOSITY``). Warnings of class `SealstWarning` are Python's, and filtered as those are.

    Examples
    --------
    >>> import sealst as sl
    >>> with sl.settings.override(progress=False):
    ...     pass
    """

    cache_dir: Path = _default("cache_dir", lambda: Path.home() / ".cache" / "sealst")
    device: str = _default("device", lambda: "auto")
    precision: str = _default("precision", lambda: "auto")
    progress: bool = _default("progress", lambda: sys.stderr.isatty() or "ipykernel" in sys.modules)
    batch_size: int = _default("batch_size", lambda: 64)
    seed: int = _default("seed", lambda: 0)
    n_jobs: int | None = _default("n_jobs", lambda: None)
    verbosity: str = _default("verbosity", _level)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _CHECKS:
            raise AttributeError(f"settings has no {name!r}; known: {sorted(_CHECKS)}")
        value = _CHECKS[name](name, value)
        object.__setattr__(self, name, value)
        if name == "verbosity":
            _log.setLevel(value.upper())

    def __repr__(self) -> str:
        values = [(f.name, getattr(self, f.name)) for f in fields(self)]
        return "\n".join(["Settings", *(f"  {name + ':':<12}{value}" for name, value in values)])

    @contextlib.contextmanager
    def override(self, **changes: Any) -> Iterator[Settings]:
        """Change settings inside a ``with`` block and restore them afterwards."""
        if unknown := sorted(set(changes) - set(_CHECKS)):
            raise AttributeError(f"settings has no {unknown}; known: {sorted(_CHECKS)}")
        before = {name: getattr(self, name) for name in changes}
        try:
            for name, value in changes.items():
                setattr(self, name, value)
            yield self
        finally:
            for name, value in before.items():
                setattr(self, name, value)


settings = Settings()


def resolve_seed(seed: int | None) -> int:
    """The seed of a call: the one it was given, else that of the settings."""
    used = settings.seed if seed is None else whole("seed", seed)
    if not 0 <= used < 2**63:
        raise DataError(f"`seed` must be a whole number from 0 to 2**63 - 1, found {shown(used)}.")
    return used
