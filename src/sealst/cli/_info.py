"""The command ``sealst info``."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import click

from sealst._settings import settings
from sealst._version import __version__
from sealst.cli._common import EXIT_CODES, Answer, SealstCommand

#: what decides results, and what extras bring
_PACKAGES = ("torch", "timm", "peft", "lightning", "anndata", "spatialdata", "zarr", "dask", "scanpy", "squidpy")
_PACKAGES += ("decoupler", "numpy", "pandas", "scipy", "faiss-cpu", "openslide-python", "torchmil", "scikit-survival")


@click.command(cls=SealstCommand, epilog=f"Example: `sealst info > info.txt`, for a report of a bug. {EXIT_CODES}")
def info() -> Answer:
    """Say what sealst runs on: versions, devices, settings. Nothing secret is shown."""
    facts: dict[str, Any] = {"sealst": __version__, "python": platform.python_version()}
    facts |= {"platform": platform.platform(), "cpus": os.cpu_count()}
    facts["packages"] = {name: _version(name) for name in _PACKAGES}
    facts["devices"] = _devices()
    facts["settings"] = {"cache_dir": str(settings.cache_dir), "device": settings.device, "seed": settings.seed}
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict):
            lines += [f"{name}:", *(f"  {key}: {'-' if v is None else v}" for key, v in value.items())]
        else:
            lines.append(f"{name}: {', '.join(value) if isinstance(value, list) else value}")
    return Answer(facts, "\n".join(lines))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> list[str]:
    import torch

    found = [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    return [*found, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]
