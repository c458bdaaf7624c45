"""State of an unfinished training on disk: tensors and plain values, written atomically, read without pickle."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from sealst._errors import CheckpointError

FILE = "checkpoint.pt"


def write_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write beside the old one, then replace it: a crash or a full disk leaves the old one."""
    path, partial = folder / FILE, folder / f".{FILE}.tmp"
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        kept = "The last one is still there" if path.is_file() else "There is none yet"
        raise CheckpointError(
            f"The checkpoint could not be written to {str(folder)!r} ({error}). {kept}; make room, then run the same "
            "call with `resume=True`."
        ) from error


def read_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The state in a folder, or None where there is none."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"The checkpoint {str(path)!r} is damaged ({type(error).__name__}). Remove it to start again."
        ) from error
    return state
