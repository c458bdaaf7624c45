"""Bags of tile embeddings with the labels of their slides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from sealst._data.bags.bags import SLIDE, Bags, join_labels, labels_by_slide, read_slide_table
from sealst._docs import documented
from sealst._errors import DataError
from sealst._files import absolute, expanded, visible
from sealst._keys import Keys
from sealst._logging import logger, warn
from sealst._section import get_table, sections_of
from sealst._text_table import ENDINGS
from sealst._validate import check_key, check_positive, listed, patient_text
from sealst.io._bags.sources import ArrayReader, BagReader, FeatureTableReader, FileReader, H5adReader, TableReader

Source: TypeAlias = str | Path | Sequence[AnnData | SpatialData] | Mapping[str, "AnnData | SpatialData | np.ndarray"]
#: columns of the manifest of `tl.embed_slides` that describe the run, not the slide
_RUN_COLUMNS = ("slide", "path", "file", "n_tiles", "status", "seconds", "digest", "novelty")
_DONE, _BLANK = "done", "blank"


@documented
def read_bags(
    source: Source,
    *,
    labels: pd.DataFrame | str | Path | None = None,
    key: str | None = None,
    patient_key: str = Keys.PATIENT,
    slide_key: str = SLIDE,
    table_key: str = Keys.TABLE,
    level0_px: float | None = None,
) -> Bags:
    """Slides as bags of tile embeddings, joined with their labels by name.

    Nothing but names is read now; a slide's embeddings are read when they are asked for. Tiles without a finite
    embedding are left out, and their number is logged.

    Parameters
    ----------
    source
        - folder of ``tl.embed_slides``
        - folder of TRIDENT or CLAM: ``.h5`` files with ``features`` (and ``coords``), or the folder with one
          ``features_<name>`` per encoder, of which every one is an embedding, or the job's folder around one such
        - sections with embeddings (AnnData or SpatialData, also LazySlide's with its feature tables): a list, in which
          every section of a table is a slide, or by name
        - arrays (n_tiles, dim) by name
    labels
        Table with one row per slide, or its CSV or TSV file (UTF-8). Names of slides and patients are text as they
        stand in the file; among other columns, empty cells and ``NA`` are missing labels.
    key
        Embedding that the bags hold; default ``"X_seal"`` where it is there, else the only one.
    patient_key
        Column of `labels` with the patient; without `labels`, column of the manifest of ``tl.embed_slides``. Where
        there is no column ``"patient"`` the source says who it is; failing that, every slide is a patient of its own,
        with a warning.
    slide_key
        Column of `labels` with the name of the slide; where there is no column ``"slide"`` the index is the name.
    %(table_key)s
    level0_px
        Side of a tile in pixels of the full-resolution image, where files of features do not state it. CLAM writes it
        to its ``patches`` folder, which is found beside the features. Stored corners give no positions without it.

    Returns
    -------
    `Bags`, in the order of the source. Slides without a row of `labels` are kept with missing labels, rows without a
    slide are left out; both are reported.

    Raises
    ------
    MissingKeyError
        When no embedding is common to all slides, or `key` is not; or there is no column `patient_key` or `slide_key`
        of another name than the default.
    DataError
        When names occur twice or none agrees with `labels`, or slides were embedded by different models or on crops of
        different size.

    Examples
    --------
    >>> import numpy as np, sealst as sl
    >>> arrays = {name: np.zeros((10, 4)) for name in ("s1", "s2")}
    >>> table = pd.DataFrame({"slide": ["s1", "s2"], "patient": ["p1", "p2"], "grade": [1, 3]})
    >>> sl.io.read_bags(arrays, labels=table)
    Bags of 2 slides, 2 patients: 'features' of ('features',); labels 'grade'
    """
    if labels is None and slide_key != SLIDE:
        raise DataError(
            f"`slide_key={slide_key!r}` names a column of `labels`, and there are none. Pass `labels=`, or leave it "
            "out: a source names its own slides."
        )
    if level0_px is not None:
        check_positive("level0_px", level0_px)
    readers, known = _open(source, table_key, patient_key)
    files = {name: one for name, one in readers.items() if isinstance(one, FileReader)}
    if level0_px is not None and not files:
        raise DataError("`level0_px` belongs to files of features; this source says itself where its tiles lie.")
    for file in files.values():
        file.level0_px = None if level0_px is None else float(level0_px)
    if unknown_side := [name for name, file in files.items() if file.lacks_side()]:
        warn(
            f"The files of {len(unknown_side)} slide(s) ({listed(unknown_side)}) hold the corners of tiles, but "
            "nothing says how large a tile is: their positions are left out. Pass `level0_px=`, its side in pixels of "
            "the full-resolution image, or copy CLAM's folder `patches` beside the features."
        )
    by_slide = {name: reader.models() for name, reader in readers.items()}
    first = next(iter(by_slide))
    common = [one for one in by_slide[first] if all(one in made for made in by_slide.values())]
    if not common:
        lacking = next((name for name, made in by_slide.items() if not made), first)
        raise DataError(
            f"No embedding is common to all slides; {lacking!r} has {listed(by_slide[lacking])}. Run `sl.tl.embed` on "
            "all."
        )
    models = {}
    for one in common:
        if len(distinct := dict.fromkeys(made[one] for made in by_slide.values())) > 1:
            raise DataError(
                f"Embeddings {one!r} were made by {len(distinct)} models ({listed(distinct)}), so that their columns "
                "mean different things. Embed all slides with one."
            )
        models[one] = by_slide[first][one]
    if key is not None:
        check_key(models, key, where="the embeddings that all slides have", hint="Name one of them with `key=`.")
    elif Keys.EMBEDDING in models or len(models) == 1:
        key = Keys.EMBEDDING if Keys.EMBEDDING in models else next(iter(models))
    else:
        raise DataError(f"The slides have several embeddings, {listed(models)}; name one with `key=`.")
    obs = pd.DataFrame(index=pd.Index(list(readers), name="slide")).join(known)
    if labels is not None:
        table = _label_table(labels, slide_key, patient_key)
        obs = join_labels(obs, table)
        slides = obs.index
        if len(unlabelled := slides.difference(table.index, sort=False)):
            warn(f"{len(unlabelled)} of {len(slides)} slides have no row in `labels`: {listed(unlabelled)}.")
        if len(spare := table.index.difference(slides, sort=False)):
            warn(f"{len(spare)} row(s) of `labels` have no embeddings and are left out: {listed(spare)}.")
        logger.info("%d of %d slides have labels", len(slides) - len(unlabelled), len(slides))
    elif patient_key != Keys.PATIENT:
        obs = _rename_patient(obs, patient_key, where="the manifest of the source")
    # As labels or manifest say, else the table, else the slide itself.
    given = obs[Keys.PATIENT] if Keys.PATIENT in obs else pd.Series(None, index=obs.index, dtype=object)
    people = {name: patient_text(value) or readers[str(name)].patient() for name, value in given.items()}
    if unknown := [name for name, value in people.items() if value is None]:
        warn(
            f"The patient of {len(unknown)} slide(s) is unknown ({listed(unknown)}); each counts as a patient of its "
            "own. If patients have several slides, add a column 'patient' to `labels`: splits are by patient."
        )
    people = {name: str(name) if value is None else value for name, value in people.items()}
    obs[Keys.PATIENT] = pd.Series(people, dtype=object)
    facts = {"models": models, "tiles": {name: reader.facts() for name, reader in readers.items()}}
    if isinstance(source, str | Path):
        facts["source"] = str(source)
    return Bags(obs=obs, keys=tuple(models), key=key, readers=readers, facts=facts)


# -- sources ----------------------------------------------------------------------------------------------------------
def _open(source: Any, table_key: str, patient: str) -> tuple[dict[str, BagReader], pd.DataFrame]:
    """Readers by slide, and what the source itself knows about the slides."""
    if isinstance(source, str | Path):
        return _open_folder(absolute(source), patient)
    if isinstance(source, AnnData | SpatialData):
        source = [source]
    if isinstance(source, Mapping):
        found = {str(name): _reader_of(str(name), value, table_key) for name, value in source.items()}
    elif isinstance(source, Sequence):
        found = {}
        for i in range(len(source)):
            for reader in _section_readers(source[i], i, table_key):
                if reader.name in found:
                    raise DataError(
                        f"Slide name {reader.name!r} occurs twice; name slides with `read_bags({{'name': section}})`."
                    )
                found[reader.name] = reader
    else:
        raise TypeError(
            "`source` must be a folder, sections (AnnData, SpatialData) or arrays by name, found "
            f"{type(source).__name__}."
        )
    if not found:
        raise DataError("`source` is empty; at least one slide is needed.")
    return found, pd.DataFrame()


def _reader_of(name: str, value: Any, table_key: str) -> BagReader:
    if isinstance(value, np.ndarray):
        return ArrayReader(name, features=value)
    if isinstance(value, SpatialData) and (tables := _feature_tables(value)):
        return _lazyslide(name, value, tables)
    if isinstance(value, AnnData | SpatialData):
        return TableReader(name, table=get_table(value, table_key))
    raise TypeError(f"Slide {name!r} must be AnnData, SpatialData or an array, found {type(value).__name__}.")


def _section_readers(value: Any, position: int, table_key: str) -> list[BagReader]:
    if not isinstance(value, AnnData | SpatialData):
        raise TypeError(f"`source[{position}]` must be AnnData or SpatialData, found {type(value).__name__}.")
    if isinstance(value, SpatialData) and (tables := _feature_tables(value)):
        path: Any = getattr(value, "reader", None)
        name = Path(str(path.file)).stem if hasattr(path, "file") else f"slide{position}"
        return [_lazyslide(name, value, tables)]
    table = get_table(value, table_key)
    return [TableReader(part.section, table=table, rows=part.rows) for part in sections_of(table)]


def _feature_tables(sdata: SpatialData) -> dict[str, AnnData]:
    """Tables that LazySlide writes: embeddings in ``.X``, named ``<model>_<tiles>``, annotating the tiles."""
    found = {}
    for name, table in sdata.tables.items():
        region = table.uns.get("spatialdata_attrs", {}).get("region")
        if isinstance(region, str) and name.endswith(f"_{region}") and "tile_id" in table.obs and table.n_vars:
            found[name] = table
    return found


def _lazyslide(name: str, sdata: SpatialData, tables: dict[str, AnnData]) -> FeatureTableReader:
    centres = {}
    for key, table in tables.items():
        region = table.uns["spatialdata_attrs"]["region"]
        if region in sdata.shapes:
            tiles = sdata.shapes[region]
            middle = tiles.geometry.centroid
            ids = tiles.get("tile_id", tiles.index)
            centres[key] = pd.DataFrame({"x": middle.x.to_numpy(), "y": middle.y.to_numpy()}, index=pd.Index(ids))
    return FeatureTableReader(name, tables=tables, centres=centres)


def _open_folder(folder: Path, patient: str) -> tuple[dict[str, BagReader], pd.DataFrame]:
    if not folder.is_dir():
        raise DataError(f"{str(folder)!r} is no folder. Expected one of `tl.embed_slides`, or of h5 files.")
    if (folder / "manifest.csv").is_file():
        return _embedded_slides(folder, patient)
    groups = _features(folder)
    if not groups:
        inner = [path for path in visible(folder).values() if path.is_dir() and _features(path)]
        if len(inner) > 1:
            raise DataError(
                f"{str(folder)!r} holds features of several tilings, {listed(path.name for path in inner)}; name the "
                "folder of one."
            )
        if inner:
            groups = _features(inner[0])
    if not groups:
        groups = {"features": folder / "h5_files" if (folder / "h5_files").is_dir() else folder}
        if folder.name.startswith("features_"):
            groups = {folder.name.removeprefix("features_"): folder}
    found = [(key, path) for key, group in groups.items() for path in visible(group).values() if path.suffix == ".h5"]
    if empty := [path.name for _, path in found if not path.stat().st_size]:
        warn(
            f"{len(empty)} file(s) are empty (0 bytes), as a run that was stopped leaves them, and are left out: "
            f"{listed(empty)}."
        )
    paths: dict[str, dict[str, Path]] = {}
    for key, path in found:
        if path.stat().st_size:
            paths.setdefault(path.stem, {})[key] = path
    if not paths:
        raise DataError(
            f"{str(folder)!r} holds neither manifest.csv (of `tl.embed_slides`) nor .h5 files of features, itself or "
            "in `features_<name>` folders."
        )
    return {name: FileReader(name, paths=files) for name, files in paths.items()}, pd.DataFrame()


def _features(folder: Path) -> dict[str, Path]:
    """Folders of features by encoder."""
    named = {name: path for name, path in visible(folder).items() if name.startswith("features_") and path.is_dir()}
    return {name.removeprefix("features_"): path for name, path in named.items()}


def _embedded_slides(folder: Path, patient: str) -> tuple[dict[str, BagReader], pd.DataFrame]:
    """Finished slides of `tl.embed_slides`, and the labels that its manifest came with."""
    manifest = read_slide_table(folder / "manifest.csv", names=(patient,))
    for column in ("slide", "status"):
        check_key(manifest.columns, column, where=f"`{folder.name}/manifest.csv`", hint="Run `tl.embed_slides` again.")
    if len(blank := manifest.loc[manifest["status"] == _BLANK, "slide"]):
        warn(f"{len(blank)} slide(s) are blank, without tissue, and left out: {listed(blank)}.")
    failed = manifest.loc[~manifest["status"].isin([_DONE, _BLANK]), "slide"]
    if len(failed):
        warn(f"{len(failed)} slide(s) are not embedded and left out: {listed(failed)}. failures.csv says why.")
    done = manifest[manifest["status"] == _DONE].set_index("slide")
    if not len(done):
        raise DataError(f"{str(folder)!r} holds no finished slide; see failures.csv.")
    if double := sorted(done.index[done.index.duplicated()].unique()):
        raise DataError(f"Slide name(s) {listed(double)} occur twice in manifest.csv.")
    paths = {name: folder / "slides" / f"{name}.h5ad" for name in done.index}
    if lost := [name for name, path in paths.items() if not path.is_file()]:
        raise DataError(
            f"Slide(s) {listed(lost)} of manifest.csv have no file in slides/; run `tl.embed_slides` again."
        )
    if "digest" in done and (same := done["digest"].dropna()).duplicated().any():
        twice = same.index[same.duplicated(keep=False)]
        warn(
            f"Slides {listed(twice)} were made from the same file(s), as after a slide was renamed. Remove the "
            "old ones: `tl.embed_slides(..., prune=True)` with the present manifest does it."
        )
    facts = done.drop(columns=[c for c in _RUN_COLUMNS if c in done.columns])
    return {name: H5adReader(name, path=path) for name, path in paths.items()}, facts


# -- embeddings -------------------------------------------------------------------------------------------------------


# -- labels -----------------------------------------------------------------------------------------------------------
def _label_table(labels: Any, slide_key: str, patient_key: str) -> pd.DataFrame:
    """Labels with slide names as index."""
    if isinstance(labels, str | Path):
        path = expanded(labels)
        if path.suffix.lower() not in ENDINGS:
            raise DataError(f"`labels` must be a file of {listed(ENDINGS)}, found {path.name!r}.")
        if not path.is_file():
            raise DataError(f"`labels`: no file {str(path)!r}.")
        labels = read_slide_table(path, names=(slide_key, patient_key))
        check_key(
            labels.columns, slide_key, where=f"the columns of {path.name!r}", hint="Name the column with `slide_key=`."
        )
    if not isinstance(labels, pd.DataFrame):
        raise TypeError(f"`labels` must be a DataFrame or a path, found {type(labels).__name__}.")
    if slide_key not in (SLIDE, labels.index.name):
        check_key(labels.columns, slide_key, where="the columns of `labels`", hint="Name the column with `slide_key=`.")
    if patient_key != Keys.PATIENT:
        labels = _rename_patient(labels, patient_key, where="the columns of `labels`")
    return labels_by_slide(labels, slide_key)


def _rename_patient(table: pd.DataFrame, patient: str, *, where: str) -> pd.DataFrame:
    """Table whose column `patient` says who the patient is, in place of one that is called so."""
    check_key(table.columns, patient, where=where, hint="Name it with `patient_key=`, in a table with `labels=`.")
    return table.drop(columns=[Keys.PATIENT], errors="ignore").rename(columns={patient: Keys.PATIENT})
