"""Write an index: segments of embedded sections, deletions, and the faiss index over them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sealst._core.made_by import MadeBy
from sealst._data.index import approximate
from sealst._data.index.vectors import Change, Snapshot, changing, check_target
from sealst._errors import DataError, OrderError
from sealst._files import absolute
from sealst._logging import logger, warn
from sealst._validate import check_choice
from sealst._version import __version__
from sealst.models import SealModel
from sealst.tl._retrieve.library import OBS_NAME, Sections, Sheet, read_sheets

#: columns of the facts that only the index itself reads: number of the section, distance from its mean
GROUP, SPREAD = "_group", "_spread"
#: vectors are the encoder's embeddings, or what projection heads make of them
ENCODER, SHARED = "encoder", "shared"
KINDS = ("auto", "exact", *approximate.KINDS)
#: from so many vectors on `kind="auto"` takes an approximate index
AUTO_VECTORS = 200_000
_BLOCK = 65_536


def build(
    sections: Sections,
    path: str | PathLike[str],
    *,
    key: str,
    kind: str,
    params: Mapping[str, int] | None,
    columns: Sequence[str],
    table_key: str,
    overwrite: bool,
    model: SealModel | None,
) -> Snapshot:
    """Build an index in a folder; arguments as in `build_index`."""
    check_choice("kind", kind, KINDS)
    if kind in approximate.KINDS:
        approximate.faiss_module()
    if params and kind == "auto":
        raise DataError("`params` belong to one kind of index; name it: `kind='ivf'` or `kind='hnsw'`.")
    if kind != "auto":
        approximate.resolve_options(kind, params)
    folder = absolute(path)
    check_target(folder, overwrite=overwrite)
    with changing(folder, replace=True) as change:
        # Again: another process may have been faster.
        check_target(folder, overwrite=overwrite)
        sheets = read_sheets(sections, key=key, table_key=table_key, columns=columns, model=model)
        written = write_segment(change, sheets, before=None)
        config: dict[str, Any] = {"asked": kind, "params": dict(params or {}), "key": key}
        config |= {"made_by": written.made_by.as_dict(), "dim": written.dim, "programs": written.programs}
        config |= {"space": ENCODER if model is None or model.projection.kind == "none" else SHARED}
        config |= {"columns": list(columns), "version": __version__}
        config |= {"segments": [written.segment], "kept": None}
        return change.commit(config | _with_faiss(change, config))


def add(folder: Path, sections: Sections, *, table_key: str, mmap: bool, model: SealModel | None) -> Snapshot:
    """Add sections to an index."""
    with changing(folder, mmap=mmap) as change:
        before = change.present
        config = dict(before.config)
        if space_of(before) == ENCODER and config.get("programs") is None:
            model = None
        elif model is None:
            raise OrderError(
                "The index holds what the model makes of embeddings; add sections with "
                "`index.add(sections, model=model)`."
            )
        readout = (config.get("programs") or {}).get("readout")
        sheets = read_sheets(
            sections, key=config["key"], table_key=table_key, columns=config["columns"], model=model, readout=readout
        )
        segment = write_segment(change, sheets, before=before).segment
        config["segments"] = [*before.segments, segment]
        if before.kept is not None:
            kept = np.concatenate([before.kept, np.ones(segment["n"], dtype=bool)])
            config["kept"] = change.save("kept", kept)
        if before.faiss is not None and before.faiss_index is None:
            # Of an earlier version, which did not write down what its file was.
            config |= _with_faiss(change, config)
        elif before.faiss is not None:
            index = approximate.read(before.faiss, mmap=False)
            approximate.extend(index, Snapshot(change.folder, config, True).vectors, len(before.vectors))
            config["faiss"] = _save(change, index)
        return change.commit(config)


def space_of(snapshot: Snapshot) -> str:
    """Which vectors an index holds: `ENCODER` or `SHARED`."""
    return str(snapshot.config.get("space", ENCODER))


def delete(folder: Path, choose: Any, *, mmap: bool) -> tuple[Snapshot, int]:
    """Mark rows as deleted; `choose` returns which, from a snapshot."""
    with changing(folder, mmap=mmap) as change:
        before = change.present
        kept = np.ones(len(before.vectors), dtype=bool) if before.kept is None else before.kept.copy()
        gone = choose(before) & kept
        if not gone.any():
            return before, 0
        config = dict(before.config) | {"kept": change.save("kept", kept & ~gone)}
        return change.commit(config), int(gone.sum())


def compact(folder: Path, *, mmap: bool) -> Snapshot:
    """Write an index anew, without its deleted rows and with a faiss index made for what is left."""
    with changing(folder, mmap=mmap) as change:
        before = change.present
        n = len(before.vectors)
        rows = np.arange(n) if before.kept is None else np.flatnonzero(before.kept)
        if not rows.size:
            raise DataError("Nothing is left in the index; remove its folder, or add sections first.")
        with change.vectors(before.config["dim"]) as sink:
            for start in range(0, len(rows), _BLOCK):
                sink.append(before.vectors[rows[start : start + _BLOCK]])
        groups = groups_of(before)[rows]
        used, local = np.unique(groups, return_inverse=True)
        spots = before.spots.take(pa.array(rows)).combine_chunks()
        spots = spots.set_column(spots.schema.get_field_index(GROUP), GROUP, pa.array(local.astype(np.int32)))
        segment: dict[str, Any] = {"vectors": sink.name, "spots": change.save_spots(spots), "n": len(rows)}
        segment |= {"means": change.save("means", before.means[used])}
        segment |= {"sections": [before.sections[i] for i in used]}
        if before.programs is not None:
            with change.vectors(before.programs.shape[1], "programs") as predicted:
                for start in range(0, len(rows), _BLOCK):
                    predicted.append(before.programs[rows[start : start + _BLOCK]])
            segment |= {"programs": predicted.name}
        config = dict(before.config) | {"segments": [segment], "kept": None}
        return change.commit(config | _with_faiss(change, config))


@dataclass(frozen=True)
class Written:
    """A segment that was written, and what its sections have in common."""

    segment: dict[str, Any]
    made_by: MadeBy
    dim: int
    #: readout and number of its programs, None where there are none
    programs: dict[str, Any] | None


def write_segment(change: Change, sheets: Iterator[Sheet], *, before: Snapshot | None) -> Written:
    """Write sections as one segment, one after the other."""
    names: list[str] = [] if before is None else live_sections(before)
    n_taken, tables = len(names), []
    means: list[np.ndarray] = []
    schema = None if before is None else before.spots.schema
    first = next(sheets)
    made_by = first.made_by if before is None else MadeBy(**before.config["made_by"])
    dim = first.vectors.shape[1] if before is None else before.config["dim"]
    programs = _programs_of(first) if before is None else before.config.get("programs")
    with ExitStack() as files:
        sink = files.enter_context(change.vectors(dim))
        predicted = None if programs is None else files.enter_context(change.vectors(programs["n"], "programs"))
        sheet: Sheet | None = first
        del first
        while sheet is not None:
            _check_sheet(sheet, names, made_by, dim)
            tables.append(_facts_table(sheet, len(means), schema))
            schema = tables[0].schema if schema is None else schema
            sink.append(sheet.vectors)
            if predicted is not None and sheet.programs is not None:
                predicted.append(sheet.programs)
            means.append(sheet.mean)
            names.append(sheet.section)
            sheet = next(sheets, None)
    spots = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    segment: dict[str, Any] = {
        "vectors": sink.name,
        "spots": change.save_spots(spots),
        "means": change.save("means", np.stack(means)),
    }
    segment |= {"programs": None if predicted is None else predicted.name}
    logger.info("Wrote %d vectors of %d section(s) to %s", sink.rows, len(means), change.folder)
    return Written(segment | {"sections": names[n_taken:], "n": sink.rows}, made_by, dim, programs)


def _programs_of(sheet: Sheet) -> dict[str, Any] | None:
    return None if sheet.programs is None else {"readout": sheet.readout, "n": sheet.programs.shape[1]}


def _check_sheet(sheet: Sheet, names: Sequence[str], made_by: MadeBy, dim: int) -> None:
    """Raise unless a section can be added to those of an index."""
    if sheet.section in names:
        raise DataError(
            f"Section {sheet.section!r} is in the index already. Names of sections must differ: rename it, or "
            f"remove the old one with `index.delete(where={{'section': {sheet.section!r}}})` first."
        )
    if wrong := made_by.differences(sheet.made_by):
        raise DataError(
            f"Embeddings of section {sheet.section!r} differ from those of the index in {'; '.join(wrong)}. "
            "Only embeddings of one model and of crops of one size can be compared: embed all sections alike."
        )
    if sheet.vectors.shape[1] != dim:
        raise DataError(
            f"Embeddings of section {sheet.section!r} have {sheet.vectors.shape[1]} dimensions, those of the "
            f"index {dim}. Embed all sections with the same model."
        )


def _facts_table(sheet: Sheet, group: int, schema: pa.Schema | None) -> pa.Table:
    facts = sheet.facts.assign(**{GROUP: np.int32(group), SPREAD: sheet.spread})
    facts[GROUP] = facts[GROUP].astype(np.int32)
    try:
        if schema is not None:
            return pa.Table.from_pandas(facts, schema=schema.remove_metadata(), preserve_index=False)
        table = pa.Table.from_pandas(facts, preserve_index=False).replace_schema_metadata()
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"A column of section {sheet.section!r} is of another type than in the sections before ({error}). Make it "
            "text everywhere, e.g. `table.obs[name] = table.obs[name].astype(str)`."
        ) from error
    text = [f for f in table.schema if not (pa.types.is_floating(f.type) or pa.types.is_integer(f.type))]
    for field in text:
        column = table[field.name].cast(pa.string())
        place = table.schema.get_field_index(field.name)
        # Few values that repeat, but for the names.
        table = table.set_column(
            place, field.name, column if field.name == OBS_NAME else column.cast(pa.dictionary(pa.int32(), pa.string()))
        )
    return table


def _with_faiss(change: Change, config: Mapping[str, Any]) -> dict[str, Any]:
    """Kind of index for so many vectors, and the file of the faiss index where there is one."""
    kind, vectors = config["asked"], Snapshot(change.folder, config, True).vectors
    if kind == "auto":
        kind = "exact" if len(vectors) < AUTO_VECTORS else "ivf"
        if kind != "exact" and not approximate.has_faiss():
            warn(
                f"{len(vectors):,} vectors are searched one by one, as faiss is not installed. `pip install "
                '"sealst[index]"` and `index.compact()` make it faster.'
            )
            kind = "exact"
    options = approximate.resolve_options(kind, config["params"])
    found: dict[str, Any] = {"kind": kind, "options": options, "faiss": None}
    if kind != "exact":
        found["faiss"] = _save(change, approximate.build(kind, vectors, options))
    return found


def _save(change: Change, index: Any) -> str:
    path = change.new_file("faiss", "index")
    approximate.write(index, path)
    return change.finished(path, hashed=True)


def groups_of(snapshot: Snapshot) -> np.ndarray:
    """Position in `snapshot.sections` of every row's section."""
    local = snapshot.spots[GROUP].to_numpy()
    before = np.cumsum([0, *(len(s["sections"]) for s in snapshot.segments)])[:-1]
    return local + np.repeat(before, [s["n"] for s in snapshot.segments])


def live_sections(snapshot: Snapshot) -> list[str]:
    """Names of the sections of which not all rows are deleted."""
    if snapshot.kept is None:
        return snapshot.sections
    return [snapshot.sections[i] for i in np.unique(groups_of(snapshot)[snapshot.kept])]
