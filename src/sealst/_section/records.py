"""What calls recorded of themselves: ``.uns["sealst"][<call>]``, in plain types that h5ad and zarr can store."""

from __future__ import annotations

from typing import Any

from anndata import AnnData

from sealst._keys import Keys
from sealst._version import __version__


def recorded(table: AnnData, call: str) -> dict[str, Any]:
    """Copy of what a call recorded; empty where it has not run."""
    return dict(table.uns.get(Keys.UNS, {}).get(call, {}))


def record(table: AnnData, call: str, entry: dict[str, Any]) -> None:
    """Write what a call did, keeping what other calls wrote."""
    table.uns[Keys.UNS] = dict(table.uns.get(Keys.UNS, {})) | {call: entry, "version": __version__}


def record_slot(table: AnnData, call: str, key: str, entry: dict[str, Any]) -> None:
    """Write what a call did for one slot, keeping what it recorded of others."""
    record(table, call, recorded(table, call) | {key: entry})
