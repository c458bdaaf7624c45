"""Vectors with facts about each on disk, that always open as they were before or after a change.

A folder holds ``config.json`` and the files that it names: per call that added vectors a segment of ``vectors-*.npy``
(float32, unit length, memory-mapped), ``spots-*.parquet`` (a row for each) and ``means-*.npy`` (mean of the unit
vectors of each section, float64), and maybe ``programs-*.npy`` (what was predicted of each row, float32); where rows
were deleted ``kept-*.npy`` (bool); and maybe a faiss index. Files are never changed. A change writes new ones under new
names and then renames a new ``config.json`` over the old one, the one step that counts. What a killed process leaves
behind is named nowhere, and the next change removes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from sealst._core.made_by import MadeBy
from sealst._data.index import approximate
from sealst._data.stacked import Stacked
from sealst._errors import CheckpointError, SealstError
from sealst._files import flush, read_json, sweep, visible, write_json
from sealst._given.schema import Count, FileName, Name, Names, Number, Stored, Text, Width, one_of
from sealst._process.locks import hold
from sealst._validate import listed, resolve_params, shown

FORMAT = "sealst-index-1"
CONFIG = "config.json"
_LOCK = ".lock"
_OURS = re.compile(r"(vectors|programs|spots|means|kept|faiss)-\d{6}-[0-9a-f]{8}\.(npy|parquet|index)")
#: attempts to open, when files vanish because another process replaces them
_ATTEMPTS = 5


class _Segment(Stored):
    """Files of the sections that one call added."""

    vectors: FileName
    spots: FileName
    means: FileName
    n: Count
    sections: Annotated[Names, Field(min_length=1)]
    programs: FileName | None = None


class _Programs(Stored):
    """In the programs of which readout predictions lie, and how many these are."""

    readout: Name
    n: Width


class _Config(Stored):
    """``config.json``."""

    format: Annotated[str, one_of(FORMAT)]
    generation: Count
    asked: Name
    kind: Annotated[str, one_of("exact", *approximate.KINDS)]
    params: dict[Name, Number]
    options: dict[Name, Number]
    key: Name
    made_by: dict[Name, Any]
    dim: Width
    space: Annotated[str, one_of("encoder", "shared")] = "encoder"
    programs: _Programs | None = None
    columns: Names
    version: Text
    segments: Annotated[list[_Segment], Field(min_length=1)]
    kept: FileName | None
    faiss: FileName | None
    #: bytes of every file
    files: dict[FileName, Number]
    #: SHA-256 of the faiss index; missing in folders of earlier versions
    hashes: dict[FileName, Name] = {}


@dataclass(frozen=True)
class Snapshot:
    """A state of the folder, as `config.json` told it."""

    folder: Path
    config: Mapping[str, Any]
    mmap: bool

    @property
    def segments(self) -> list[dict[str, Any]]:
        """Files and sections of every segment."""
        return list(self.config["segments"])

    @cached_property
    def vectors(self) -> Stacked:
        """Unit vectors of all rows, also of deleted ones, float32 (n, d)."""
        dim = self.config["dim"]
        parts = [self._array(s["vectors"], "<f4", (s["n"], dim), mmap=self.mmap) for s in self.segments]
        return Stacked(parts, [dim], np.float32)

    @cached_property
    def programs(self) -> Stacked | None:
        """Predictions of all rows in the programs of a readout, float32 (n, programs); None where there are none."""
        if (facts := self.config.get("programs")) is None:
            return None
        parts = [self._array(s["programs"], "<f4", (s["n"], facts["n"]), mmap=self.mmap) for s in self.segments]
        return Stacked(parts, [facts["n"]], np.float32)

    @cached_property
    def spots(self) -> pa.Table:
        """Facts on every row."""
        tables = []
        for segment in self.segments:
            path = self.folder / segment["spots"]
            try:
                if (found := pq.read_metadata(path).num_rows) == segment["n"]:
                    tables.append(pq.read_table(path, memory_map=self.mmap))
            except pa.ArrowException as error:
                raise _damaged(
                    self.folder, f"{path.name} cannot be read ({' '.join(str(error).split())[:200]})"
                ) from error
            if found != segment["n"]:
                raise _damaged(self.folder, f"{path.name} has {found:,} rows, not {segment['n']:,}")
        try:
            return pa.concat_tables(tables, promote_options="default").unify_dictionaries()
        except pa.ArrowException as error:
            raise _damaged(self.folder, f"tables of spots do not fit together ({shown(str(error))})") from error

    @cached_property
    def means(self) -> np.ndarray:
        """Mean unit vector of every section, float64 (n_sections, d), in the order of `sections`."""
        shapes = [(len(s["sections"]), self.config["dim"]) for s in self.segments]
        names = [s["means"] for s in self.segments]
        return np.concatenate([self._array(name, "<f8", shape) for name, shape in zip(names, shapes, strict=True)])

    @property
    def sections(self) -> list[str]:
        """Names of all sections, in the order in which they were added."""
        return [name for s in self.segments for name in s["sections"]]

    @cached_property
    def kept(self) -> np.ndarray | None:
        """Which rows are not deleted; None when none is."""
        name = self.config["kept"]
        return self._array(name, "|b1", (sum(s["n"] for s in self.segments),)) if name else None

    @property
    def faiss(self) -> Path | None:
        """File of the faiss index."""
        return self.folder / self.config["faiss"] if self.config["faiss"] else None

    @cached_property
    def faiss_index(self) -> Any:
        """The faiss index over all rows, also deleted ones; None where there is none, or none that is known again.

        faiss trusts what it reads: a file is opened only where it is, byte by byte, the one that was written.
        """
        path = self.faiss
        stated = None if path is None else self.config.get("hashes", {}).get(path.name)
        if path is None or stated is None:
            return None
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != stated:
                raise _damaged(self.folder, f"{path.name} is not the file that was written")
        index = approximate.read(path, mmap=self.mmap)
        if (index.d, index.ntotal) != self.vectors.shape[::-1]:
            raise _damaged(self.folder, f"{path.name} belongs to other vectors")
        return index

    def _array(self, name: str, kind: str, shape: tuple[int, ...], *, mmap: bool = False) -> np.ndarray:
        """Array in a file, of the type and shape that it must have; nothing is read or allocated before it has."""
        path = self.folder / name
        with path.open("rb") as stream:
            try:
                version = np.lib.format.read_magic(stream)
                reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                found, fortran, dtype = reader[version](stream)
            except (ValueError, KeyError) as error:
                raise _damaged(self.folder, f"{name} is no array of numbers") from error
            size = stream.tell() + dtype.itemsize * int(np.prod(shape, dtype=object))
        if (found, fortran, dtype.str) != (shape, False, kind) or path.stat().st_size != size:
            raise _damaged(self.folder, f"{name} holds {shown(found)} of {dtype.str}, not {shape} of {kind}")
        # A plain array over the map: memmap's own indexing is slow.
        return np.asarray(np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False))

    def files(self) -> dict[str, int]:
        """Names of all files, and their bytes."""
        return dict(self.config["files"])


def open_store(folder: Path, *, mmap: bool = True) -> Snapshot:
    """Open the present state of a folder.

    Raises
    ------
    CheckpointError
        When there is no index, it is of another format, or files are missing or cut short.
    """
    for attempt in range(_ATTEMPTS):
        config = _read_config(folder)
        snapshot = Snapshot(folder, config, mmap)
        try:
            for name, size in snapshot.files().items():
                if (found := (folder / name).stat().st_size) != size:
                    raise _damaged(folder, f"{name} has {found:,} bytes, not {size:,}")
            # Opened now: a change by another process may remove the files later.
            _ = snapshot.vectors, snapshot.spots, snapshot.means, snapshot.kept, snapshot.faiss_index, snapshot.programs
        except FileNotFoundError as error:
            if attempt + 1 == _ATTEMPTS or _read_config(folder) == config:
                raise _damaged(folder, f"{Path(error.filename or '').name or 'a file'} is missing") from error
            continue
        return snapshot
    raise CheckpointError(f"The index {str(folder)!r} changes faster than it can be opened.")


def _damaged(folder: Path, how: str) -> CheckpointError:
    return CheckpointError(f"The index {str(folder)!r} is damaged: {how}. Restore it from a copy, or build it again.")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"{str(folder)!r} holds no index (no {CONFIG}). Build one: `sl.tl.build_index(sections, path)`."
        )
    config = read_json(path)
    facts = _Config.of(config, where=repr(str(path)))
    used = [name for s in facts.segments for name in (s.vectors, s.spots, s.means, s.programs) if name]
    used += [name for name in (facts.kept, facts.faiss) if name]
    # No other file is ever opened, measured or removed.
    if wrong := sorted(name for name in {*used, *facts.files} if name not in facts.files or not _OURS.fullmatch(name)):
        raise _damaged(folder, f"{CONFIG} names {listed(wrong, 4)}, not among its files")
    if twice := [s.sections for s in facts.segments if len(set(s.sections)) < len(s.sections)]:
        raise _damaged(folder, f"{CONFIG} names a section twice ({listed(twice[0], 4)})")
    if any((s.programs is None) != (facts.programs is None) for s in facts.segments):
        raise _damaged(folder, f"{CONFIG} has `programs` of some segments, not of all")
    try:
        resolve_params(MadeBy, facts.made_by, name="made_by")
        approximate.check_options(facts.kind, facts.options)
    except (SealstError, TypeError) as error:
        raise _damaged(folder, f"{CONFIG}: {error}") from error
    return config


@contextmanager
def changing(folder: Path, *, replace: bool = False, mmap: bool = True) -> Iterator[Change]:
    """Inside a ``with`` block, a change of a folder, which no other process may change; if it fails nothing stays.

    With `replace` the folder may be new. An index in it stays until the commit, and need not be sound.

    Raises
    ------
    InUseError
        When another process writes to it.
    """
    if replace:
        folder.mkdir(parents=True, exist_ok=True)
    elif not (folder / CONFIG).exists():
        _read_config(folder)
    advice = "Wait until it is done and call again; reading is possible meanwhile."
    with hold(folder / _LOCK, f"The index {str(folder)!r}", wait=False, advice=advice):
        if replace:
            before = Snapshot(folder, _read_config(folder), mmap) if (folder / CONFIG).exists() else None
        else:
            before = open_store(folder, mmap=mmap)
        change = Change(folder, before)
        try:
            yield change
        except BaseException:
            # What the change wrote is removed, unless it is the state of the folder by now.
            change.sweep(_read_config(folder)["files"] if (folder / CONFIG).exists() else {})
            raise


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Raise unless an index may be built in a folder."""
    if (folder / CONFIG).exists():
        if not overwrite:
            raise CheckpointError(
                f"{str(folder)!r} holds an index already; pass `overwrite=True` to replace it, or add sections with "
                "`SealIndex.load(path).add(sections)`."
            )
        _read_config(folder)
    elif folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{str(folder)!r} is a file; name a folder for the index.")
    elif folder.exists() and any(not _OURS.fullmatch(name) for name in visible(folder)):
        raise CheckpointError(f"{str(folder)!r} holds other files; name a new folder for the index.")


@dataclass
class Change:
    """A change of a folder that is being written; call with its lock held."""

    folder: Path
    before: Snapshot | None
    #: sizes of what this change wrote, and digests of what must be known again
    _written: dict[str, int] = field(default_factory=dict)
    _hashes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # Of a process that was killed while it wrote the configuration.
        sweep(self.folder / CONFIG)
        self._generation = (self.before.config["generation"] if self.before else 0) + 1
        self.sweep(self.before.files() if self.before else {})

    @property
    def present(self) -> Snapshot:
        """State before the change."""
        if self.before is None:
            raise CheckpointError(f"{str(self.folder)!r} holds no index.")
        return self.before

    def new_file(self, kind: str, ending: str) -> Path:
        """Path of a file that nobody has."""
        return self.folder / f"{kind}-{self._generation:06d}-{secrets.token_hex(4)}.{ending}"

    def finished(self, path: Path, *, hashed: bool = False) -> str:
        """Make sure that a file is on the disk, and with `hashed` that it is known again; returns its name."""
        flush(path)
        if hashed:
            with path.open("rb") as stream:
                self._hashes[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
        self._written[path.name] = path.stat().st_size
        return path.name

    def save(self, kind: str, array: np.ndarray) -> str:
        """Write an array; returns the name of its file."""
        path = self.new_file(kind, "npy")
        np.save(path, array, allow_pickle=False)
        return self.finished(path)

    def save_spots(self, spots: pa.Table) -> str:
        """Write facts on rows; returns the name of their file."""
        path = self.new_file("spots", "parquet")
        pq.write_table(spots, path, compression="zstd")
        return self.finished(path)

    @contextmanager
    def vectors(self, dim: int, kind: str = "vectors") -> Iterator[VectorFile]:
        """Inside a ``with`` block, a file to which vectors are appended."""
        path = self.new_file(kind, "npy")
        with open(path, "wb") as stream:
            sink = VectorFile(stream, dim)
            yield sink
            sink.close()
        sink.name = self.finished(path)

    def commit(self, config: Mapping[str, Any]) -> Snapshot:
        """Make the change the state of the folder."""
        known = (self.before.files() if self.before else {}) | self._written
        segments = config["segments"]
        used = [s[kind] for s in segments for kind in ("vectors", "spots", "means", "programs") if s.get(kind)]
        used += [config[kind] for kind in ("kept", "faiss") if config[kind]]
        files = {name: known[name] for name in used}
        hashes = (self.before.config.get("hashes", {}) if self.before else {}) | self._hashes
        content = dict(config) | {"format": FORMAT, "generation": self._generation, "files": files}
        content["hashes"] = {name: hashes[name] for name in used if name in hashes}
        # The files that the configuration names are there before it is.
        flush(self.folder)
        write_json(self.folder / CONFIG, content, sync=True)
        snapshot = open_store(self.folder, mmap=self.before.mmap if self.before else True)
        self.sweep(files)
        return snapshot

    def sweep(self, files: Mapping[str, int]) -> None:
        """Remove all of ours but `files`: what a killed change, or an older state, left behind."""
        for path in self.folder.iterdir():
            if _OURS.fullmatch(path.name) and path.name not in files:
                # Systems that lock mapped files keep it until the next change.
                with contextlib.suppress(PermissionError):
                    path.unlink(missing_ok=True)


class VectorFile:
    """A ``.npy`` file of unknown length that is written from front to back."""

    def __init__(self, stream: Any, dim: int) -> None:
        self._stream, self._dim = stream, dim
        self.rows = 0
        self.name = ""
        self._header()

    def append(self, vectors: np.ndarray) -> None:
        """Add vectors (m, d)."""
        self._stream.write(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
        self.rows += len(vectors)

    def close(self) -> None:
        """Write the final number of rows into the header."""
        self._stream.seek(0)
        self._header()
        self._stream.flush()

    def _header(self) -> None:
        # numpy leaves room in the header for a first dimension that grows.
        facts = {"descr": "<f4", "fortran_order": False, "shape": (self.rows, self._dim)}
        np.lib.format.write_array_header_1_0(self._stream, facts)
