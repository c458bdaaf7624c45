"""The folder of a SEAL model as it looks from outside: what tells it, before torch is there to read it."""

from __future__ import annotations

from pathlib import Path

from sealst._errors import CheckpointError
from sealst._files import put_back
from sealst._validate import listed

#: files without which a folder is no model
FILES = ("config.json", "panel.tsv", "base.json", "heads.safetensors")


def check_complete(folder: Path) -> None:
    """Raise `CheckpointError` where there is no model, or not all of one; what a killed process left is mended."""
    put_back(folder)
    if not folder.exists():
        raise CheckpointError(f"No model at {str(folder)!r} (looked for {str(folder.absolute())!r}).")
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise CheckpointError(
            f"{str(folder)!r} is not a complete sealst model: it lacks {listed(missing)}.{_model_near(folder)}"
        )


def _model_near(folder: Path) -> str:
    """Where a model lies in a folder that is none: in the folder of its run, or one folder further down."""
    inside = folder / "model"
    if _is_complete(inside):
        return f" It is the folder of a run; its model is {str(inside)!r}."
    below = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    found = [str(p) for one in below for p in (one, one / "model") if _is_complete(p)]
    return f" {'A model lies' if len(found) == 1 else 'Models lie'} in {listed(found, 4)}." if found else ""


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)
