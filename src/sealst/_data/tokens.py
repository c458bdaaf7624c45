"""Tokens on disk: one folder per section that runs share, resumable and safe against two writers.

Layout of ``<cache_dir>/tokens/<key>/``: ``tokens.npy`` (crops, views, tokens, width) in float16, or as the bits of
bfloat16 in uint16; ``crc32.u32``, one CRC-32 per crop; ``meta.json``, facts in plain words. That is written last, so an
entry without it is not finished. Until then ``progress.json`` says how many crops are safely on disk.

With adapters in the last k of L blocks the first L - k never change, so their output is kept (half precision) and only
the tail is run in training.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from sealst._core.device import to_images
from sealst._core.seeds import seeded
from sealst._data.augment import AUGMENTATION_VERSIONS, AUGMENTATIONS
from sealst._data.crops.source import CropSource, iter_source
from sealst._data.stacked import Stacked
from sealst._errors import DataError, InUseError, SealstError
from sealst._files import visible, write_text
from sealst._given.schema import Count, Name, Number, Stored, one_of
from sealst._logging import logger, warn
from sealst._process.locks import check_unread, hold, reading

FORMAT = "sealst-tokens-1"
#: crops whose tokens are written at once; also part of what an augmented view is, as a block is augmented together
BLOCK = 64
#: bytes of a finished entry that are compared with their checksums when it is opened
_CHECKED_BYTES = 256 * 2**20
_META, _PROGRESS, _TOKENS, _CHECKS = "meta.json", "progress.json", "tokens.npy", "crc32.u32"
#: beyond this float16 comes close to its largest number, 65,504
_HALF_LIMIT = 6e4
#: how the two types lie in a file
_STORED = {"float16": "<f2", "bfloat16": "<u2"}


#: crops of one block, number of the view and of the block → float tokens (b, t, w)
_Make = Callable[[np.ndarray, int, int], torch.Tensor]


class _TooLargeError(Exception):
    """Values do not fit into float16."""


@dataclass(frozen=True)
class Entry:
    """Where the tokens of one section are, or will be.

    Parameters
    ----------
    root
        Folder of all entries.
    facts
        Everything that decides what the tokens are, as JSON values.
    n, views
        Crops, and versions of each.
    notes
        What else a reader of ``meta.json`` should know.
    """

    root: Path
    facts: Mapping[str, Any]
    n: int
    views: int
    notes: Mapping[str, Any]

    @property
    def key(self) -> str:
        """64 hex digits that change with any fact."""
        facts = dict(self.facts) | {"format": FORMAT, "block": BLOCK, "n": self.n, "views": self.views}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @property
    def folder(self) -> Path:
        """Folder of this entry."""
        return self.root / self.key[:32]


class _Record(Stored):
    """What is read of ``meta.json`` and of ``progress.json``."""

    key: Name
    dtype: Annotated[str, one_of(*_STORED)]
    shape: Annotated[tuple[Count, Count, Count, Count], Field(strict=False)]
    #: crops that are safely on disk
    rows: Number


def _read_record(path: Path) -> dict[str, Any] | None:
    """Facts of an entry; None where there are none that could be used."""
    try:
        return _Record.read(path).model_dump()
    except (OSError, SealstError):
        return None


def _header(record: Mapping[str, Any]) -> bytes:
    """First bytes of ``tokens.npy``."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        out, {"descr": _STORED[record["dtype"]], "fortran_order": False, "shape": tuple(record["shape"])}
    )
    return out.getvalue()


def _row_bytes(record: Mapping[str, Any]) -> int:
    return int(np.prod(record["shape"][1:], dtype=np.int64)) * 2


def _sound(folder: Path, record: Mapping[str, Any], rows: int) -> bool:
    """Whether the first rows are there; some of them, in small entries all, are compared with their checksums."""
    try:
        size, start = _row_bytes(record), len(_header(record))
        with open(folder / _TOKENS, "rb") as file:
            if os.fstat(file.fileno()).st_size < start + rows * size or file.read(start) != _header(record):
                return False
            checks = np.fromfile(folder / _CHECKS, dtype="<u4", count=rows)
            for row in np.unique(np.linspace(0, rows - 1, min(rows, max(2, _CHECKED_BYTES // size))).astype(int)):
                file.seek(start + int(row) * size)
                if zlib.crc32(file.read(size)) != checks[row]:
                    return False
    except (OSError, IndexError):
        return False
    return True


def is_finished(entry: Entry) -> bool:
    """Whether all of an entry was written."""
    return (entry.folder / _META).exists()


def is_complete(entry: Entry) -> bool:
    """Whether an entry is finished and sound; warns where it is damaged."""
    if not is_finished(entry):
        return False
    if not (sound := _is_sound(entry)):
        warn(f"The cached tokens at {str(entry.folder)!r} are damaged; they are made again.")
    return sound


def _is_sound(entry: Entry) -> bool:
    meta = _read_record(entry.folder / _META)
    return meta is not None and meta["key"] == entry.key and _sound(entry.folder, meta, entry.n)


def _thing(folder: Path) -> str:
    return f"The entry {str(folder)!r} of the token cache"


@contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with hold(folder.with_name(f".{folder.name}.lock"), _thing(folder), wait=wait):
        yield


def write_entry(entry: Entry, crops: Callable[[], Any], tokens: _Make, *, bar: Any) -> None:
    """Make the tokens of a section; continues an interrupted run, waits for another writer.

    Parameters
    ----------
    entry
        What to write.
    crops
        Returns the crops, uint8 (n, px, px, 3); called only when something is missing.
    tokens
        Crops of one block, number of the view and of the block → float tokens (b, t, w).
    bar
        Progress bar, moved by one for every crop and view.

    Raises
    ------
    DataError
        When the disk is full.
    """
    with _locked(entry.folder):
        if _is_sound(entry):
            bar.update(entry.n * entry.views)
            return
        (entry.folder / _META).unlink(missing_ok=True)
        entry.folder.mkdir(exist_ok=True)
        try:
            _write(entry, crops(), tokens, bar)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
                raise
            raise DataError(
                f"The disk of {str(entry.root)!r} is full; what was written is kept for the next run. "
                f"{no_room_advice()}"
            ) from error


def no_room_advice() -> str:
    """What to do when tokens do not fit."""
    return (
        "Free space with `sl.tl.clear_cache()`, name a larger disk with `sl.settings.cache_dir`, ask for fewer "
        "`views`, or train with `params={'cache': 'none'}`."
    )


def _write(entry: Entry, crops: Any, tokens: _Make, bar: Any) -> None:
    record = _read_record(entry.folder / _PROGRESS)
    if record is None or record["key"] != entry.key or not _sound(entry.folder, record, record["rows"]):
        record = None
    else:
        logger.info("tokens of %d of %d crops are already on disk", record["rows"], entry.n)
    try:
        record = _append(entry, crops, tokens, record=record or {"dtype": "float16", "rows": 0}, bar=bar)
    except _TooLargeError:
        logger.info("Tokens exceed what float16 can hold; they are kept in bfloat16.")
        record = _append(entry, crops, tokens, record={"dtype": "bfloat16", "rows": 0}, bar=bar)
    size = sum(path.stat().st_size for path in (entry.folder / _TOKENS, entry.folder / _CHECKS))
    facts = dict(entry.notes) | dict(entry.facts)
    meta = {"format": FORMAT, "key": entry.key, **facts, "views": entry.views, **record, "bytes": size}
    created = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    write_text(entry.folder / _META, json.dumps(meta | {"created": created}, indent=1) + "\n")
    (entry.folder / _PROGRESS).unlink()


def _append(entry: Entry, crops: Any, tokens: _Make, *, record: dict[str, Any], bar: Any) -> dict[str, Any]:
    """Write what is missing, block by block; the record is only ahead of nothing that is not on disk."""
    rows = record["rows"]
    bar.update(rows * entry.views)
    mode = "r+b" if rows else "wb"
    with open(entry.folder / _TOKENS, mode) as file, open(entry.folder / _CHECKS, mode) as checks:
        if rows:
            file.seek(len(_header(record)) + rows * _row_bytes(record))
            checks.seek(4 * rows)
        for start in range(rows, entry.n, BLOCK):
            parts, some = [], crops[start : start + BLOCK]
            for view in range(entry.views):
                made = tokens(some, view, start // BLOCK)
                if record["dtype"] == "float16" and bool((made.abs() > _HALF_LIMIT).any()):
                    raise _TooLargeError
                parts.append(made.to(getattr(torch, record["dtype"])).cpu())
                bar.update(len(made))
            # 16 bits each, (b, views, t, w)
            block = torch.stack(parts, dim=1).view(torch.int16).numpy().view("<u2")
            if start == 0:
                record = record | {"key": entry.key, "shape": [entry.n, *block.shape[1:]]}
                file.write(_header(record))
            file.write(block.tobytes())
            checks.write(np.array([zlib.crc32(row.tobytes()) for row in block], dtype="<u4").tobytes())
            for written in (file, checks):
                written.truncate()
                written.flush()
                os.fsync(written.fileno())
            record["rows"] = start + len(block)
            write_text(entry.folder / _PROGRESS, json.dumps(record))
    return record


class _StoredTokens:
    """Tokens of an entry as an array (crops, views, tokens, width), read when they are indexed."""

    def __init__(self, folder: Path, meta: dict[str, Any]) -> None:
        self._folder, self._n, self._kind = folder, int(meta["shape"][0]), getattr(torch, str(meta["dtype"]))
        #: of what is read
        self.dtype: torch.dtype = self._kind
        self._map: np.ndarray | None = None

    def __len__(self) -> int:
        return self._n

    def __getstate__(self) -> dict[str, Any]:
        # Another process opens the file itself; a pickled map would be a copy of its file.
        return self.__dict__ | {"_map": None}

    def __getitem__(self, key: tuple[np.ndarray, np.ndarray]) -> torch.Tensor:
        if self._map is None:
            self._map = np.load(self._folder / _TOKENS, mmap_mode="r").view(np.int16)
        return torch.from_numpy(self._map[key]).view(self._kind).to(self.dtype)


def stacked_tokens(folders: Sequence[Path]) -> Stacked:
    """Tokens of several finished entries as one sequence, whose pairs of row and view are (b, t, w).

    A batch is of the type of the files, float32 where they differ.
    """
    metas = [_read_record(folder / _META) or {} for folder in folders]
    if absent := [str(folder) for folder, meta in zip(folders, metas, strict=True) if "shape" not in meta]:
        raise DataError(f"The cached tokens at {absent[0]!r} are gone. Train again to make them anew.")
    inner = {tuple(meta["shape"][1:]) for meta in metas}
    if len(inner) != 1:
        raise DataError(f"Cached tokens of different shapes cannot be joined: {sorted(inner)} (views, tokens, width).")
    parts = [_StoredTokens(folder, meta) for folder, meta in zip(folders, metas, strict=True)]
    kinds = {part.dtype for part in parts}
    dtype = kinds.pop() if len(kinds) == 1 else torch.float32
    for part in parts:
        part.dtype = dtype
    return Stacked(parts, inner.pop(), dtype, empty=_empty)


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    # A function of its own, as torch's cannot be sent to worker processes.
    return torch.empty(shape, dtype=dtype)


@contextmanager
def in_use(root: Path, entries: Iterable[Entry]) -> Iterator[None]:
    """Inside a ``with`` block, `clear` removes none of these entries, of which some may have to be written yet.

    That they are in use today is noted too. In a cache of another user, where nothing can be noted, it has no effect.
    """
    with ExitStack() as stack:
        with suppress(PermissionError):
            root.mkdir(parents=True, exist_ok=True)
            name = stack.enter_context(reading(root))
            for entry in entries:
                with suppress(PermissionError), _locked(entry.folder):
                    entry.folder.mkdir(exist_ok=True)
                    (entry.folder / name).touch()
                    stack.callback((entry.folder / name).unlink, missing_ok=True)
                    if is_finished(entry):
                        os.utime(entry.folder / _META)
        yield


def clear(root: Path, *, older_than: float | None, dry_run: bool) -> int:
    """Remove entries below `root` that were not used for some days and that nobody reads; returns their bytes."""
    freed = 0
    for folder in sorted(path for path in root.glob("*") if path.is_dir()):
        marks = [folder / name for name in (_META, _PROGRESS) if (folder / name).exists()]
        # Nothing but what this module wrote, whatever else lies in the folder.
        if not marks and set(visible(folder)) - {_TOKENS, _CHECKS}:
            continue
        used = max((path.stat().st_mtime for path in marks), default=folder.stat().st_mtime)
        if older_than is not None and time.time() - used < older_than * 86_400:
            continue
        try:
            with _locked(folder, wait=False):
                check_unread(folder, _thing(folder))
                freed += sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
                if not dry_run:
                    (folder / _META).unlink(missing_ok=True)
                    shutil.rmtree(folder)
        except InUseError as error:
            logger.info("%s It is kept.", error)
    return freed


@dataclass(frozen=True)
class Trunk:
    """How tokens are made."""

    #: images (b, 3, px, px) in [0, 1] → tokens (b, t, w)
    run: Callable[[torch.Tensor], torch.Tensor]
    #: what decides what `run` returns: weights, number of blocks, how pixels are fed, precision
    facts: Mapping[str, Any]
    #: name of the augmentation of every view but the first
    augmentation: str
    device: torch.device
    #: images per call of `run`
    batch_size: int
    #: more about the encoder, for readers of an entry
    notes: Mapping[str, Any] = field(default_factory=dict)

    def entry(self, root: Path, *, digest: str, n: int, px: int, views: int) -> Entry:
        """Where the tokens of crops with a digest belong."""
        # One view is the crop itself, whatever the augmentation.
        varied = f"{self.augmentation}, version {AUGMENTATION_VERSIONS[self.augmentation]}" if views > 1 else "none"
        facts = dict(self.facts) | {"crops": digest, "px": px, "augmentation": varied}
        return Entry(root, facts, n, views, self.notes)

    def fill(self, entry: Entry, crops: Callable[[], Any], *, bar: Any) -> None:
        """Write an entry, unless it is there; see `write_entry`."""

        def tokens(block: np.ndarray, view: int, number: int) -> torch.Tensor:
            with torch.inference_mode():
                images = to_images(block, self.device)
                if view:
                    # The same views whenever and wherever a build went on, and the caller's random state untouched.
                    name = f"{entry.key} {view} {number}".encode()
                    with seeded(int.from_bytes(hashlib.sha256(name).digest()[:4], "big")):
                        images = AUGMENTATIONS[self.augmentation](images)
                return torch.cat([self.run(part) for part in images.split(self.batch_size)])

        write_entry(entry, crops, tokens, bar=bar)


def crops_digest(parts: Iterable[tuple[Any, np.ndarray]], n: int) -> str:
    """Digest of crops in their order, given as positions and crops in any order."""
    found = np.zeros((n, 16), dtype=np.uint8)
    for positions, crops in parts:
        made = b"".join(hashlib.blake2b(np.ascontiguousarray(c).data, digest_size=16).digest() for c in crops)
        found[positions] = np.frombuffer(made, dtype=np.uint8).reshape(-1, 16)
    return hashlib.sha256(found.tobytes()).hexdigest()


def source_digest(source: CropSource, px: int, *, bar: Any) -> str:
    """Digest of the crops of a source, which are read for it and not kept."""

    def read() -> Iterable[tuple[np.ndarray, np.ndarray]]:
        for positions, crops in iter_source(source, px):
            yield positions, crops
            bar.update(len(positions))

    return crops_digest(read(), len(source.boxes))


def token_bytes(n: int, views: int, n_tokens: int, width: int) -> int:
    """Size of a trunk cache in bytes."""
    return n * views * n_tokens * width * 2
