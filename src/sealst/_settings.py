"""Process-wide defaults."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any


def _default_cache() -> Path:
    return Path(os.environ.get("SEALST_CACHE", Path.home() / ".cache" / "sealst"))


@dataclass
class Settings:
    """Defaults that calls fall back to when an argument is ``None``.

    Attributes
    ----------
    cache_dir
        Folder for downloaded data, for tokens of frozen encoder blocks that runs share (see `sealst.tl.clear_cache`),
        and for crops that training keeps on disk while it runs (environment variable ``SEALST_CACHE``).
    device
        ``"auto"`` (a GPU when there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
    progress
        Whether long work shows progress bars.
    batch_size
        Crops per forward pass at inference.
    seed
        Seed of `sealst.tl.finetune` where it is given none.

    Examples
    --------
    >>> import sealst as sl
    >>> with sl.settings.override(progress=False):
    ...     pass
    """

    cache_dir: Path = field(default_factory=_default_cache)
    device: str = "auto"
    progress: bool = field(default_factory=lambda: sys.stderr.isatty() or "ipykernel" in sys.modules)
    batch_size: int = 64
    seed: int = 0

    @contextlib.contextmanager
    def override(self, **changes: Any) -> Iterator[Settings]:
        """Change settings inside a ``with`` block and restore them afterwards."""
        known = {f.name for f in fields(self)}
        if unknown := sorted(set(changes) - known):
            raise AttributeError(f"settings has no {unknown}; known: {sorted(known)}")
        before = {name: getattr(self, name) for name in changes}
        try:
            for name, value in changes.items():
                setattr(self, name, value)
            yield self
        finally:
            for name, value in before.items():
                setattr(self, name, value)


settings = Settings()
