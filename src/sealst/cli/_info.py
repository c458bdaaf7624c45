"""The command ``sealst info``."""

from __future__ import annotations

from typing import Any

import click

from sealst._core.cores import n_cores
from sealst._session_info import installed_version, session_info
from sealst._settings import settings
from sealst.cli._common import Answer, SealstCommand

#: what extras bring
_EXTRAS = ("distributed", "faiss-cpu", "openslide-python", "scikit-survival", "tensorboard", "torchmil", "wsidata")


@click.command(cls=SealstCommand, epilog="Example: `sealst info > info.txt`, for a report of a bug.")
def info() -> Answer:
    """Say what sealst runs on: versions, devices, settings. Nothing secret is shown."""
    found = session_info()
    facts: dict[str, Any] = {name: found.pop(name) for name in ("sealst", "python", "platform", "device")}
    facts["cpus"] = n_cores()
    facts["packages"] = found | {name: installed_version(name) for name in _EXTRAS}
    facts["settings"] = {"cache_dir": str(settings.cache_dir), "device": settings.device, "seed": settings.seed}
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict):
            lines += [f"{name}:", *(f"  {key}: {v}" for key, v in value.items())]
        else:
            lines.append(f"{name}: {value}")
    return Answer(facts, "\n".join(lines))
