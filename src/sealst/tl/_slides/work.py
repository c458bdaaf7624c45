"""The three steps of a slide: find its tiles, embed a range of them, put the ranges together.

Each may run in any process, may be cut off at any point, and may run again: what is there is not done twice.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem, write_elem
from filelock import FileLock

from sealst import _section
from sealst._data.bags.parts import Parts, append_array, append_frame
from sealst._data.crops.plain import PlainCrops
from sealst._data.crops.reader import iter_crops, prefetch, reading_order
from sealst._errors import DataError
from sealst._files import complete_file
from sealst._keys import Keys
from sealst._logging import logger
from sealst._validate import as_columns
from sealst.io import read_wsi
from sealst.models import SealModel
from sealst.pp import pair_crops, tile
from sealst.tl._embed.novelty import judged, novelty_entry, warning_of, watched
from sealst.tl._embed.trust import reliability_entry
from sealst.tl._pathways.pathways import pathways_entry, score_sets
from sealst.tl._slides.job import PRESENT, Job, features_of, predicted, provenance, using
from sealst.tl._slides.manifest import Slide

PLAN, EMBED, FINISH = "plan", "embed", "finish"
#: array of a range: how many tiles were read, of a single colour, black
_PLAIN = "plain"
#: entry of ``.uns["sealst"]`` that says what a file was made from
ENTRY = "embed_slides"


class Task(NamedTuple):
    """One step of a slide; `start` is the first row of a range, else 0."""

    slide: int
    step: str
    start: int = 0


def work(step: str, slide: Slide, job: Job, start: int, digest: str) -> dict[str, Any]:
    """Do one step of a slide, in whichever process."""
    if step == PLAN:
        return plan(slide, job)
    if step == EMBED:
        return embed_range(slide, job, start, digest)
    return finish(slide, job, digest)


# -- finding tiles ----------------------------------------------------------------------------------------------------
def plan(slide: Slide, job: Job) -> dict[str, Any]:
    """Find the tiles of a slide; tells which ranges are left, or that the slide is finished."""
    digest = job.digest(slide)
    done = finished(job.table(slide))
    if done is not None and done["digest"] == digest:
        with _file_lock(job.table(slide)):
            _restate(job.table(slide), slide)
        return done
    parts = job.parts(slide, digest)
    with parts.lock(PLAN) as planned:
        if not planned:
            with quietly():
                sdata = _opened(slide)
                tile(sdata, crop_um=job.tile_um, step_um=job.step_um, min_tissue=job.min_tissue)
                image = _section.image_levels(sdata.images[Keys.image(slide.name)])
                pair_crops(sdata, crop_um=job.tile_um, crop_px=job.tile_px)
                table = sdata.tables[Keys.TABLE]
                (crops,) = _section.paired_table(sdata).sections
                boxes = crops.boxes
                if len(boxes) != table.n_obs:
                    raise DataError(f"{table.n_obs - len(boxes)} tiles of {slide.name!r} leave the image.")
                # Rows are in the order in which pixels are read, so that ranges of rows share few chunks of the file.
                order = reading_order(image, boxes, job.tile_px)
                table = table[order].copy()
                if job.novelty:
                    # Filled once all tiles are embedded.
                    table.obs[Keys.NOVELTY] = np.nan
            with using(job) as model:
                entries = provenance(model, job, {crops.region.name: crops.definition})
            _section.record(table, "embed", entries)
            _section.record(table, ENTRY, job.settings() | {"path": str(slide.path)})
            parts.write_boxes(boxes[order])
            with complete_file(parts.tiles) as path:
                table.write_h5ad(path)
    n_tiles = len(parts.boxes())
    left = [start for start in parts.starts(n_tiles) if not parts.is_done(start)]
    n_left = sum(min(parts.tiles_per_task, n_tiles - start) for start in left)
    return {"digest": digest, "n_tiles": n_tiles, "left": left, "kept": n_tiles - n_left}


def _opened(slide: Slide) -> Any:
    return read_wsi(slide.path, section=slide.name, patient=slide.patient, organ=slide.organ, mpp=slide.mpp)


# -- embedding --------------------------------------------------------------------------------------------------------
def embed_range(slide: Slide, job: Job, start: int, digest: str) -> dict[str, Any]:
    """Embed one range of tiles, unless that was done."""
    parts = job.parts(slide, digest)
    with parts.lock(f"{start}") as planned:
        if planned and not parts.is_done(start):
            _embed(slide, job, parts, start)
    return {}


def _embed(slide: Slide, job: Job, parts: Parts, start: int) -> None:
    began = time.perf_counter()
    boxes = parts.boxes()[start : start + parts.tiles_per_task]
    with quietly():
        levels = _section.image_levels(_opened(slide).images[Keys.image(slide.name)])
    found: dict[str, np.ndarray] = {}
    plain = PlainCrops(slide.name)
    with using(job) as model:
        features = features_of(model, job)
        for rows, crops in prefetch(iter_crops(levels, boxes, job.tile_px, batch_size=job.batch_size)):
            plain.add(crops)
            for key, values in features(crops).items():
                if key not in found:
                    found[key] = np.full((len(boxes), values.shape[1]), np.nan, dtype=np.float32)
                found[key][rows] = values
        found |= predicted(model, job, found[Keys.EMBEDDING])
    counted = {_PLAIN: np.array([plain.n, plain.plain, plain.black])}
    parts.write(start, found | counted | {"seconds": np.array(time.perf_counter() - began)})


# -- putting together -------------------------------------------------------------------------------------------------
def finish(slide: Slide, job: Job, digest: str) -> dict[str, Any]:
    """Write the file of a slide from its ranges, and remove these; tells of tiles that show nothing, or what is new."""
    path, parts = job.table(slide), job.parts(slide, digest)
    said = novel = None
    path.parent.mkdir(parents=True, exist_ok=True)
    with _file_lock(path):
        done = finished(path)
        if done is None or done["digest"] != digest:
            said = _plain_of(slide, parts).verdict()
            with complete_file(path) as partial:
                novel = _assemble(slide, parts, job, partial, digest)
            done = finished(path)
        _restate(path, slide)
        parts.remove()
    return dict(done or {}) | {"plain": said, "novel": novel}


def _plain_of(slide: Slide, parts: Parts) -> PlainCrops:
    """Tiles of a single colour, counted over the whole slide: of a range alone they say little."""
    counted = [parts.read(start, _PLAIN) for start in parts.starts(len(parts.boxes())) if parts.is_done(start)]
    n, plain, black = np.sum(counted, axis=0).tolist() if counted else (0, 0, 0)
    return PlainCrops(slide.name, n=n, plain=plain, black=black)


def _file_lock(path: Path) -> FileLock:
    # Not in the folder of the ranges, which goes.
    return FileLock(path.with_name(f".{path.stem}.lock"))


def _restate(path: Path, slide: Slide) -> None:
    """Bring patient and organ of a finished slide in line with the manifest, where they were corrected there."""
    facts = {Keys.PATIENT: slide.patient, Keys.ORGAN: slide.organ}
    with h5py.File(path, "r") as file:
        held = {key: list(map(str, read_elem(file["obs"][key]["categories"]))) for key in facts}
        n_tiles = int(file["uns"][Keys.UNS][ENTRY]["n_tiles"][()])
    if held == {key: [value] for key, value in facts.items()}:
        return
    with complete_file(path) as partial:
        shutil.copyfile(path, partial)
        with h5py.File(partial, "r+") as file:
            for key, value in facts.items():
                write_elem(file["obs"], key, pd.Categorical([value] * n_tiles))


def _assemble(slide: Slide, parts: Parts, job: Job, partial: Path, digest: str) -> str | None:
    """Fill the file of a slide; tells whether it is unlike what the model has seen."""
    shutil.copyfile(parts.tiles, partial)
    n_tiles = len(parts.boxes())
    if absent := [start for start in parts.starts(n_tiles) if not parts.is_done(start)]:
        raise DataError(f"{len(absent)} ranges of tiles are missing (first: row {absent[0]}); run it again.")
    with h5py.File(partial, "r+") as file:
        keys = [Keys.EMBEDDING, *([Keys.FROZEN] if job.frozen else [])]
        for key in keys:
            append_array(file["obsm"], key, parts, n_tiles)
        names = np.asarray(read_elem(file["obs"][file["obs"].attrs["_index"]]), dtype=object)
        uns = file["uns"][Keys.UNS]
        if job.genes:
            append_frame(file["obsm"], Keys.EXPRESSION, parts, names=names, columns=as_columns(job.genes, what="Genes"))
        if job.genes or job.net:
            with using(job) as model:
                _add_expression(uns, file["obsm"], model, job, parts, names)
        seconds = sum(float(parts.read(start, "seconds")) for start in parts.starts(n_tiles))
        facts: dict[str, Any] = {"digest": digest, "n_tiles": n_tiles, "seconds": round(seconds, 3)}
        novel: str | None = None
        if job.novelty:
            with using(job) as model:
                facts["novelty"], novel = _add_novelty(file, model, slide, parts, n_tiles)
        for name, value in facts.items():
            write_elem(uns[ENTRY], name, value)
    return novel


def _add_novelty(file: h5py.File, model: Any, slide: Slide, parts: Parts, n_tiles: int) -> tuple[float, str | None]:
    """Novelty of tiles and of the slide; share of tiles that are beyond, and what is to be said of it."""
    if (known := watched(model)) is None:
        raise DataError(f"The model that embeds {slide.name!r} does not know what its training looked like.")
    distances = np.concatenate([parts.read(start, Keys.NOVELTY) for start in parts.starts(n_tiles)])
    file["obs"][Keys.NOVELTY][:], found = judged(known, slide.name, distances)
    entry = novelty_entry(known, [found])
    write_elem(file["uns"][Keys.UNS]["embed"][Keys.EMBEDDING], "novelty", entry)
    return round(found.beyond, 6), warning_of(found, known)


def _add_expression(uns: Any, obsm: Any, model: Any, job: Job, parts: Parts, names: np.ndarray) -> None:
    """Provenance of predicted expression, and scores of gene sets, range by range on the same genes."""
    if not isinstance(model, SealModel):
        raise DataError("Expression is predicted by a SEAL model; an encoder by name only embeds.")
    readout = model.crop_readout
    made: dict[str, Any] = {"model": model.fingerprint, "readout": readout, "unit": "log1p-CP10k"}
    made["layer"] = model.target_of(readout)
    if job.genes:
        # Columns are called as they can be stored.
        slashed = any("/" in gene for gene in job.genes)
        made |= {"genes": np.array(job.genes, dtype=str)} if slashed else {}
        made["reliability"] = reliability_entry(model, job.genes)
        write_elem(uns, "predict", {Keys.EXPRESSION: made})
    if job.net is None:
        return
    starts = parts.starts(len(names))
    present = np.any([parts.read(start, PRESENT) for start in starts], axis=0)
    net, scores = pd.read_parquet(job.net), []
    entry: dict[str, Any] = {}
    with quietly():
        for start in starts:
            values = model.predict_expression(parts.read(start, Keys.EMBEDDING), readout=readout)
            rows = pd.Index(names[start : start + len(values)])
            frame = pd.DataFrame(values, index=rows, columns=pd.Index(model.panel.genes))
            result = score_sets(frame, net, present=present)
            scores.append(result.scores)
            entry = entry or pathways_entry(result, source="predicted", slot=Keys.EXPRESSION)
    write_elem(obsm, Keys.PATHWAYS, pd.concat(scores))
    write_elem(uns, "pathways", {Keys.PATHWAYS: entry | {"net": job.net_label}})


def finished(path: Path) -> dict[str, Any] | None:
    """What a finished file says about itself; None where there is none, or one that is not of this call."""
    if not path.is_file():
        return None
    try:
        with h5py.File(path, "r") as file:
            entry = file["uns"][Keys.UNS][ENTRY]
            known = {"novelty": float(entry["novelty"][()])} if "novelty" in entry else {}
            return {
                "digest": entry["digest"].asstr()[()],
                "n_tiles": int(entry["n_tiles"][()]),
                "seconds": float(entry["seconds"][()]),
                "done": True,
                **known,
            }
    except (OSError, KeyError, AttributeError, TypeError):
        return None


@contextmanager
def quietly() -> Iterator[None]:
    """Only warnings, since a run of a thousand slides would say the same thousand times."""
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(level)
