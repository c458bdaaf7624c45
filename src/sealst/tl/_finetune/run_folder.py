"""The folder of a training: what was asked, the log, a checkpoint while it runs, the model at the end."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sealst._errors import DataError, SealstError
from sealst._files import write_json
from sealst._given.schema import Stored
from sealst._logging import logger, warn
from sealst._process.locks import RUN_LOCK, hold_run
from sealst._session_info import session_info
from sealst._train.callbacks import FILE, read_checkpoint
from sealst._train.params import TrainParams
from sealst._validate import listed
from sealst._version import __version__
from sealst.models import SealModel

FACTS, MODEL, FOLDS = "run.json", "model", "folds"
_SCRATCH = ".cache-"
_HALF_WRITTEN = re.compile(rf"\.{re.escape(FACTS)}-[0-9a-f]{{8}}")


def scratch_prefix(rank: int) -> str:
    """How the folders begin in which a process keeps what does not fit into memory."""
    return f"{_SCRATCH}{rank}-"


@contextmanager
def open_run(path: Path, *, resume: bool, rank: int) -> Iterator[Path]:
    """Inside a ``with`` block, the folder, new or (with `resume`) of an unfinished or finished run, for us alone."""
    _check_folder(path, resume=resume, rank=rank)
    path.mkdir(parents=True, exist_ok=True)
    with hold_run(path, rank=rank):
        # Another process may have been faster.
        _check_folder(path, resume=resume, rank=rank)
        if resume:
            # A killed run leaves these; those of other ranks may be in use already.
            for left in path.glob(f"{scratch_prefix(rank)}*"):
                shutil.rmtree(left, ignore_errors=True)
        yield path


def _check_folder(path: Path, *, resume: bool, rank: int) -> None:
    first = rank == 0
    entries = path.iterdir() if path.is_dir() else ()
    # A process that was killed while it wrote a file left that beside it; who writes the file next removes it.
    names = (p.name for p in entries if not _HALF_WRITTEN.fullmatch(p.name))
    found = sorted(name for name in names if not name.startswith((_SCRATCH, RUN_LOCK)))
    if path.exists() and not path.is_dir():
        raise DataError(f"`run_dir` {str(path)!r} is a file; name a folder.")
    # Processes that the first one started find the folder in use.
    if found and first and not resume:
        known = " It holds an earlier run; `resume=True` goes on with it." if FACTS in found else ""
        raise DataError(f"`run_dir` {str(path)!r} exists and is not empty; name a new folder.{known}")
    if found and first and FACTS not in found:
        raise DataError(f"`run_dir` {str(path)!r} holds no run ({listed(found, 4)}); name a new folder.")


def facts_of(
    model: SealModel,
    params: TrainParams,
    *,
    seed: int,
    expression: Sequence[np.ndarray],
    crops: Mapping[str, str],
    readout: str,
    fields: Sequence[float],
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """What makes a run that run; another value would make another model. `crops` are digests by section."""
    digest = hashlib.sha256()
    for values in expression:
        for start in range(0, len(values), 65536):
            digest.update(np.ascontiguousarray(values[start : start + 65536]).tobytes())
    # How fast, in what pieces and on how many workers may change.
    free = {"num_workers", "compile", "cache", "chunk_size"}
    found = {
        "params": {k: v for k, v in asdict(params).items() if k not in free},
        "encoder": model.encoder.spec.feeding() | {"key": model.encoder.spec.key},
        "adapter": model.adapter.to_dict(),
        "gene_encoder": model.gene_params.to_dict(),
        "projection": asdict(model.projection),
        "panel": model.panel.fingerprint,
        "crop": asdict(model.crop),
        "sections": list(provenance["sections"]),
        "validation": list(provenance["validation"]),
        "expression": digest.hexdigest()[:16],
        "crops": dict(crops),
        "readout": readout,
        "seed": seed,
    }
    # Runs of earlier versions name none.
    return found | ({"fields": list(fields)} if fields else {})


def rounding_of(params: TrainParams, device: torch.device, *, world: int) -> dict[str, Any]:
    """What changes in which order numbers are added, and so the last digits of a model, but not which model it is."""
    found = {"threads": torch.get_num_threads(), "device": device.type, "processes": world}
    return found | {"chunk_size": params.chunk_size, "torch": torch.__version__}


class _Written(Stored):
    """What is read of ``run.json``."""

    run: dict[str, Any]
    #: earlier versions wrote none
    rounding: dict[str, Any] | None = None


def begin(folder: Path, facts: Mapping[str, Any], *, rounding: Mapping[str, Any], first: bool) -> dict[str, Any] | None:
    """Write down what is run, or check it against what was; returns the state to continue from, if there is one."""
    facts = json.loads(json.dumps(facts))
    path = folder / FACTS
    if not path.is_file():
        if first:
            asked = {"run": facts, "rounding": dict(rounding)}
            write_json(path, {"sealst": __version__, "session": session_info()} | asked)
        return None
    written = _Written.read(path, kind=DataError)
    if differing := _differences(written.run, facts):
        raise DataError(
            f"`run_dir` {str(folder)!r} holds another run; it differs in {listed(differing, 8)}. Repeat its call, or "
            "name a new folder."
        )
    state = read_checkpoint(folder)
    if state is not None:
        logger.info("resuming stage %r after step %d", state["stage"], state["step"])
        was = rounding if written.rounding is None else written.rounding
        pairs = [(name, was.get(name), now) for name, now in rounding.items()]
        if other := [f"{name} was {then}, is {now}" for name, then, now in pairs if then != now]:
            warn(
                f"The run in {str(folder)!r} was begun otherwise: {'; '.join(other)}. Its weights will be those of an "
                "undisturbed run up to rounding only."
            )
    return state


def _differences(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> list[str]:
    out = []
    for name in [*a, *(n for n in b if n not in a)]:
        x, y = a.get(name), b.get(name)
        if isinstance(x, dict) and isinstance(y, dict):
            out += _differences(x, y, f"{prefix}{name}.")
        elif x != y:
            out.append(f"{prefix}{name}")
    return out


def finish(model: SealModel, folder: Path) -> None:
    """Write the model and its curves; the checkpoint has done its work."""
    from sealst.pl import training

    model.save(folder / MODEL)
    (folder / FILE).unlink(missing_ok=True)
    try:
        training(model, save=folder / "training.png", show=False)
    except (SealstError, OSError) as error:
        # The model is safe; a missing picture must not look like a failed training.
        warn(f"The curves could not be drawn: {error}")
    logger.info("run folder: %s", folder)
