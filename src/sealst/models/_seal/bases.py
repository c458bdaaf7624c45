"""Where the base encoders of models lie on this machine, by the hash of their weights.

A saved model names a base that was a folder by its hash and the folder's name: where it lay is nobody's business, and
says nothing on another machine. On this one a note in the cache finds it again.
"""

from __future__ import annotations

import re
from pathlib import Path

from sealst._errors import SealstError, WeightsError
from sealst._files import read_text, write_text
from sealst._logging import logger
from sealst._settings import settings

_SHA256 = re.compile(r"[0-9a-f]{64}")


def remember_base(sha256: str, folder: Path, *, replace: bool) -> None:
    """Note where a base encoder lies; without `replace` unless a place is known where it still lies.

    A cache that cannot be written to is left alone.
    """
    note = _note(sha256)
    try:
        if not replace and note.is_file() and (Path(read_text(note)) / "config.json").is_file():
            return
        note.parent.mkdir(parents=True, exist_ok=True)
        write_text(note, str(folder.absolute()))
    except (OSError, SealstError) as error:
        logger.debug("%s is not noted: %s", folder, error)


def find_base(sha256: str, name: str) -> Path:
    """Folder of the base encoder with this hash.

    Raises
    ------
    WeightsError
        When this machine has not seen it, or it has moved.
    """
    note = _note(sha256) if _SHA256.fullmatch(sha256) else None
    folder = Path(read_text(note, kind=WeightsError)) if note is not None and note.is_file() else None
    if folder is not None and (folder / "config.json").is_file():
        return folder
    where = "is not known on this machine" if folder is None else f"is no longer at {str(folder)!r}"
    raise WeightsError(
        f"The base encoder of this model, a folder {name!r} with weights of sha256 {sha256[:12]}…, {where}. Say where "
        "it is: `encoder='local-dir:<folder>'`."
    )


def _note(sha256: str) -> Path:
    return settings.cache_dir / "bases" / f"{sha256}.txt"
