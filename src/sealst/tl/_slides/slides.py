"""Embed many slides."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from os import PathLike
from typing import Any

import pandas as pd

from sealst._core.genes.sets import restrict
from sealst._core.space.views import check_views
from sealst._data.bags.parts import run_folder
from sealst._docs import documented
from sealst._errors import DataError
from sealst._files import absolute, write_json
from sealst._given.schema import Stored
from sealst._logging import logger, warn
from sealst._session_info import session_info
from sealst._settings import settings
from sealst._validate import as_columns, check_fraction, check_positive, listed, section_name, whole
from sealst.models import SealModel
from sealst.models._encoders.encoder import base_name
from sealst.tl._pathways.pathways import gene_set_edges
from sealst.tl._slides.job import Job, Model, crop_of, held, opened
from sealst.tl._slides.manifest import Slide, read_manifest
from sealst.tl._slides.run import FAILURES, MANIFEST, Run, Tables
from sealst.tl._slides.workers import threads_of_one, workers_for

_RUN = "run.json"


@documented
def embed_slides(
    manifest: pd.DataFrame | str | PathLike[str],
    model: SealModel | str | PathLike[str],
    path: str | PathLike[str],
    *,
    crop_um: float | None = None,
    crop_px: int | None = None,
    step_um: float | None = None,
    min_tissue: float = 0.5,
    views: int = 1,
    frozen: bool | None = None,
    expression: bool = False,
    genes: Sequence[str] | None = None,
    net: Any = None,
    pool: str | None = None,
    pretrained: bool = True,
    n_workers: int = 0,
    scheduler: Any = None,
    tiles_per_task: int = 4096,
    retries: int = 1,
    overwrite: bool = False,
    prune: bool = False,
    device: str | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Embed the tissue of many slides tile by tile, into one table per slide.

    A slide is cut into ranges of tiles that are embedded one by one, here or on the workers of a cluster, and put
    together in the end. What is finished stays: a run that was cut off at any point is continued by calling again
    with the same arguments. A slide that cannot be read is noted in ``failures.csv`` and stops nobody.

    Parameters
    ----------
    manifest
        Table (or CSV or TSV file) with one slide per row: ``path``, and if known ``slide`` (name, default from the
        file's name), ``patient`` (default the slide), ``organ`` and ``mpp`` (µm per pixel, where the file does not
        state it). Further columns are labels and are kept. Paths in a file are relative to it.
    model
        A SEAL model, its folder, or the name of an encoder, see `sealst.models.build_encoder`.
    path
        Folder for the results; one that an earlier run of the same model and parameters wrote is continued. Slides of
        earlier runs stay, see `prune`.
    crop_um, crop_px
        Side of a tile in µm, and in pixels as the encoder sees it. A SEAL model takes the size that it was trained on;
        an encoder by name by default that of its published users, or 112 µm.
    step_um
        Distance of neighbouring tiles in µm; by default `crop_um`, so that they touch.
    %(min_tissue)s
    views
        Over how many flips and rotations of each tile embeddings are averaged, 1 (the tile as it is) to 8. Each view is
        a forward pass: eight take about eight times as long.
    frozen
        Whether to write the embeddings of the encoder without its adapter too, from one reading of the pixels; by
        default for a SEAL model.
    expression, genes
        Whether to write predicted expression, and of which genes; by default of the whole panel.
    net
        Gene sets whose activity to score on the predicted expression (of the whole panel, by decoupler's ``"ulm"``),
        see `sealst.tl.pathways`.
    pool, pretrained
        For an encoder by name, see `sealst.tl.embed`.
    n_workers
        Processes on this machine that share the work; 0 works in this process. A script that starts some must be
        guarded by ``if __name__ == "__main__":``.
    scheduler
        Address of a Dask scheduler (``"tcp://host:8786"``) or a Dask client, in place of `n_workers`. Its workers must
        see `path`, the slides and the model under the same paths.
    tiles_per_task
        Tiles of a range. Memory and what is lost when a worker dies are bounded by it.
    retries
        How often a step of a slide that failed is tried again.
    overwrite
        Whether to embed slides again that are finished, and to replace results of another model or other parameters.
    prune
        Whether to remove the results of slides that are not in this manifest, at the end. By default they stay, in
        ``manifest.csv`` too, and their number is logged. Leave it off where several runs with rows of their own share
        `path`.
    device
        Device of the model, on every worker; default that of a model in memory, else ``settings.device`` of this
        process. Workers take its ``settings.precision`` and ``settings.n_jobs`` too. ``"auto"`` is settled on each.
    %(progress)s

    Returns
    -------
    Table with one row per slide, as in ``manifest.csv``: ``slide``, ``patient``, ``path``, ``file``, ``n_tiles``,
    ``status`` (``"done"``, ``"failed"``, or ``"blank"`` where no tissue was found), ``seconds`` (of computing),
    ``digest``, ``novelty`` (where the model knows what its training looked like: share of tiles beyond the 95th
    percentile of held-out training patients), ``organ`` and the labels. Writes to `path`

    - ``manifest.csv``, and ``failures.csv`` (``slide``, ``path``, ``error``, ``attempts``)
    - ``slides/<slide>.h5ad``: one row per tile, as `sealst.pp.tile` and `sealst.tl.embed` make it, with
      ``.obsm["X_seal"]``, ``.obs["seal_novelty"]`` (where the model knows its training), and if asked for
      ``.obsm["X_frozen"]``, ``.obsm["seal_expression"]``, ``.obsm["seal_pathways"]``
    - ``run.json``: parameters, model fingerprint, versions

    Raises
    ------
    DataError
        When slides occur twice or have names that files cannot have, columns are named like those of the result,
        parameters contradict each other, or `path` holds results of another model.
    MissingKeyError
        When the manifest has no column ``path``.

    Examples
    --------
    >>> import sealst as sl
    >>> found = sl.tl.embed_slides("cohort.csv", "my_model", "cohort", n_workers=2)  # doctest: +SKIP
    >>> found[found["status"] == "failed"]  # doctest: +SKIP
    """
    for name, value in (("tiles_per_task", tiles_per_task), ("step_um", step_um), ("crop_um", crop_um)):
        if value is not None:
            check_positive(name, value)
    check_fraction("min_tissue", min_tissue)
    check_views(views)
    for name, value in (("n_workers", n_workers), ("retries", retries)):
        whole(name, value, least=0)
    if n_workers and scheduler is not None:
        raise DataError("Give `n_workers` for processes on this machine, or `scheduler` for a cluster, not both.")
    slides = read_manifest(manifest)
    loaded, ref = opened(model, pool=pool, pretrained=pretrained, device=device)
    crop, folder = crop_of(loaded, crop_um, crop_px), absolute(path)
    asked, edges = _asked(loaded, frozen, expression=expression, genes=genes, net=net)
    job = Job(
        out=folder,
        model=ref,
        tile_um=crop.crop_um,
        step_um=float(crop.crop_um if step_um is None else step_um),
        min_tissue=float(min_tissue),
        tile_px=crop.crop_px,
        views=int(views),
        tiles_per_task=int(tiles_per_task),
        batch_size=settings.batch_size,
        precision=settings.precision,
        # Of processes that share the cores each reads with its part of them.
        n_jobs=threads_of_one(n_workers) if n_workers and settings.n_jobs is None else settings.n_jobs,
        **asked,
    )
    _prepare(job, slides, loaded, overwrite=overwrite)
    with _equipped(job, loaded, edges, elsewhere=bool(n_workers or scheduler is not None)) as job:
        tables = Tables(folder, slides)
        try:
            with workers_for(job, n_workers=n_workers, scheduler=scheduler) as workers:
                run = Run(slides, workers, tables, tiles_per_task=job.tiles_per_task, retries=retries)
                run(show=progress)
        finally:
            found = tables.write()
    n_done = int((found["status"] == "done").sum())
    logger.info(
        "Wrote %s: %d of %d slides (%d were there), %d tiles",
        *(folder / MANIFEST, n_done, len(found), run.n_skipped, found["n_tiles"].sum()),
    )
    if run.blank:
        warn(f"{len(run.blank)} of {len(found)} slides are blank, without tissue to embed: {listed(run.blank)}.")
    if run.n_failed:
        warn(
            f"{run.n_failed} of {len(found)} slides failed; {str(folder / FAILURES)!r} says why. Call again to retry "
            "them."
        )
    # A name makes paths.
    kept = [name for name in tables.kept if name == section_name(name)]
    if kept and not prune:
        logger.info(
            "%d slide(s) of earlier runs that are not in this manifest stay in %s: %s. `prune=True` removes them.",
            *(len(kept), folder / MANIFEST, listed(kept)),
        )
    elif kept:
        tables.drop(kept)
        for name in kept:
            shutil.rmtree(folder / "parts" / name, ignore_errors=True)
            (folder / "slides" / f"{name}.h5ad").unlink(missing_ok=True)
        logger.info("Removed %d slide(s) that are not in this manifest: %s", len(kept), listed(kept))
    return found


def _asked(
    model: Model, frozen: bool | None, *, expression: bool, genes: Any, net: Any
) -> tuple[dict[str, Any], pd.DataFrame | None]:
    """What to write beside the embeddings, as fields of a job; and the gene sets as edges."""
    if not isinstance(model, SealModel):
        wanted = {"frozen": frozen, "expression": expression, "genes": genes is not None, "net": net is not None}
        if named := [name for name, value in wanted.items() if value]:
            raise DataError(f"{listed(named)}: only a SEAL model offers that; an encoder by name embeds.")
        return {}, None
    if genes is not None and not expression:
        raise DataError("`genes` chooses from the predicted expression; pass `expression=True` too.")
    found: dict[str, Any] = {"frozen": True if frozen is None else bool(frozen)}
    if found["frozen"]:
        found["base"] = base_name(model.encoder)
    if model.novelty is not None:
        found["novelty"] = model.novelty.digest
    if expression:
        found["genes"] = tuple((model.panel if genes is None else model.panel.subset(genes)).genes)
        as_columns(found["genes"], what="Genes")
    if net is None:
        return found, None
    model.panel.require_names()
    edges = gene_set_edges(net)
    if restrict(edges, model.panel.genes).empty:
        raise DataError("No gene of `net` is in the model's panel. Are its genes named by symbol?")
    found["net_digest"] = hashlib.sha256(edges.to_csv(index=False).encode()).hexdigest()[:16]
    found["net_label"] = str(net) if isinstance(net, str | PathLike) else type(net).__name__
    return found, edges


class _Written(Stored):
    """What is read of ``run.json``."""

    settings: dict[str, Any]


def _prepare(job: Job, slides: Sequence[Slide], model: Model, *, overwrite: bool) -> None:
    """Make or check the folder of a run, and remove what is to be replaced."""
    given, path = job.settings(), job.out / _RUN
    before = _Written.read(path, kind=DataError).settings if path.is_file() else None
    if before is not None and before != given and not overwrite:
        other = [key for key in {**before, **given} if before.get(key) != given.get(key)]
        # Folders of earlier versions do not say everything.
        held = {key: repr(before[key]) if key in before else "not noted" for key in other}
        changes = ", ".join(f"{key} {held[key]}, now {given.get(key)!r}" for key in other)
        raise DataError(
            f"{str(job.out)!r} holds slides embedded otherwise ({changes}). Name another folder, or replace them all "
            "with `overwrite=True`."
        )
    if job.out.exists() and not job.out.is_dir():
        raise DataError(f"{str(job.out)!r} is a file; `path` must be a folder.")
    if before is None and job.out.is_dir() and any(p for p in job.out.iterdir() if not p.name.startswith(".")):
        raise DataError(f"{str(job.out)!r} holds something else (it has no {_RUN}); name another folder.")
    job.out.mkdir(parents=True, exist_ok=True)
    if overwrite and before is not None and before != given:
        for name in ("slides", "parts"):
            shutil.rmtree(job.out / name, ignore_errors=True)
        for name in (MANIFEST, FAILURES):
            (job.out / name).unlink(missing_ok=True)
    if overwrite:
        for slide in slides:
            job.table(slide).unlink(missing_ok=True)
            job.parts(slide, "").remove()
    spec = model.encoder.spec if isinstance(model, SealModel) else model.spec
    facts: dict[str, Any] = {"kind": type(model).__name__, "encoder": spec.key, "device": job.model.device}
    facts |= {"genes": list(job.genes), "net": job.net_label}
    facts |= {"tiles_per_task": job.tiles_per_task, "batch_size": job.batch_size}
    write_json(path, {"settings": given, "facts": facts, "versions": session_info()})


@contextmanager
def _equipped(job: Job, model: Model, edges: pd.DataFrame | None, *, elsewhere: bool) -> Iterator[Job]:
    """Job whose model and gene sets every process can get, as files of this run alone for the time of the run."""
    with ExitStack() as stack:
        in_memory = isinstance(model, SealModel) and job.model.folder is None
        if edges is not None or (elsewhere and in_memory):
            files = stack.enter_context(run_folder(job.out))
            if edges is not None:
                edges.to_parquet(files / "net.parquet")
                job = replace(job, net=files / "net.parquet")
            if elsewhere and isinstance(model, SealModel) and in_memory:
                model.save(files / "model", include_base=True)
                job = replace(job, model=replace(job.model, folder=files / "model"))
        stack.enter_context(held(job.model, model))
        yield job
