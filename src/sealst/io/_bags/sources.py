"""Where bags come from: tables in memory or on disk, files of features, arrays; one reader per slide."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import read_elem

from sealst._core.made_by import MadeBy
from sealst._data.bags.bags import Bag, BlankSlideError
from sealst._errors import DataError
from sealst._keys import Keys
from sealst._logging import logger
from sealst._validate import as_numbers, check_embedding, check_key, listed, patient_text, shown

#: name of the embedding in files and arrays that do not name theirs
FEATURES = "features"


@dataclass(eq=False)
class BagReader:
    """Reads one slide; leaves out tiles whose embedding is not finite, and says so once.

    Attributes
    ----------
    name
        Name of the slide.
    """

    name: str
    _told: set[str] = field(default_factory=set, init=False, repr=False)

    def __call__(self, key: str) -> Bag:
        """Read one embedding."""
        features, xy, tiles = self.read(key)
        check_embedding(features, where=f"Slide {self.name!r}: {key!r}")
        if np.ndim(features) != 2:
            raise DataError(f"Slide {self.name!r}: {key!r} must be (n_tiles, dim), found shape {np.shape(features)}.")
        features = as_numbers(f"{key} of slide {self.name!r}", features, np.float32)
        kept = np.isfinite(features).all(axis=1)
        if not kept.any():
            raise BlankSlideError(f"Slide {self.name!r}: no tile has a finite embedding {key!r}; leave the slide out.")
        if not kept.all():
            if key not in self._told:
                self._told.add(key)
                logger.info("%s: %d of %d tiles have no %r", self.name, (~kept).sum(), len(kept), key)
            features, tiles = features[kept], np.asarray(tiles)[kept]
            xy = None if xy is None else xy[kept]
        return Bag(self.name, features, xy, np.asarray(tiles))

    def read(self, key: str) -> tuple[Any, np.ndarray | None, Any]:
        """Embeddings, centres and ids of all tiles."""
        raise NotImplementedError

    def models(self) -> dict[str, str | None]:
        """What made every embedding that is there, see `MadeBy.text`."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """What is known about the tiles: side in px of the full-resolution image and as fed, overlap, µm per pixel."""
        return {}

    def patient(self) -> str | None:
        """Patient, where known."""
        return None


@dataclass(eq=False)
class ArrayReader(BagReader):
    """An array in memory."""

    features: np.ndarray = field(kw_only=True, repr=False)

    def read(self, key: str) -> tuple[Any, None, Any]:
        return self.features, None, np.arange(len(self.features)).astype(str)

    def models(self) -> dict[str, str | None]:
        return {FEATURES: None}


@dataclass(eq=False)
class TableReader(BagReader):
    """Rows of a table in memory."""

    table: AnnData = field(kw_only=True, repr=False)
    rows: np.ndarray | slice = field(default_factory=lambda: slice(None), kw_only=True, repr=False)

    def read(self, key: str) -> tuple[Any, np.ndarray | None, Any]:
        check_key(list(self.table.obsm), key, where=f"`.obsm` of slide {self.name!r}", hint="Run `sl.tl.embed`.")
        rows, place = self.rows, self.table.obsm.get(Keys.SPATIAL)
        xy = None if place is None else np.asarray(place, dtype=np.float64)[rows]
        return np.asarray(self.table.obsm[key])[rows], xy, self.table.obs_names.to_numpy()[rows]

    def models(self) -> dict[str, str | None]:
        return _embeddings(self.table.obsm, self.table.uns.get(Keys.UNS, {}))

    def facts(self) -> dict[str, Any]:
        return tile_facts(self.table.uns.get(Keys.UNS, {}))

    def patient(self) -> str | None:
        if Keys.PATIENT not in self.table.obs:
            return None
        return _one_patient(self.name, self.table.obs[Keys.PATIENT].iloc[self.rows].unique())


@dataclass(eq=False)
class FeatureTableReader(BagReader):
    """Feature tables of LazySlide: embeddings in ``.X``, one table per encoder."""

    tables: dict[str, AnnData] = field(kw_only=True, repr=False)
    #: centres by tile id, where the tiles' shapes are there
    centres: dict[str, Any] = field(kw_only=True, repr=False)

    def read(self, key: str) -> tuple[Any, np.ndarray | None, Any]:
        check_key(self.tables, key, where=f"the feature tables of slide {self.name!r}", hint="Name one with `key=`.")
        table, centres = self.tables[key], self.centres.get(key)
        x = table.X.toarray() if hasattr(table.X, "toarray") else np.asarray(table.X)
        ids = table.obs.get("tile_id", table.obs_names)
        return x, None if centres is None else centres.loc[ids].to_numpy(dtype=float), np.asarray(ids).astype(str)

    def models(self) -> dict[str, str | None]:
        return {key: key for key in self.tables}


@dataclass(eq=False)
class H5adReader(BagReader):
    """A table on disk, of which only what is asked for is read."""

    path: Path = field(kw_only=True)

    def read(self, key: str) -> tuple[Any, np.ndarray | None, Any]:
        with h5py.File(self.path) as file:
            check_key(list(file["obsm"]), key, where=f"`.obsm` of {self.path.name!r}", hint="Name one with `key=`.")
            xy = np.asarray(file["obsm"][Keys.SPATIAL][:], dtype=float) if Keys.SPATIAL in file["obsm"] else None
            names = read_elem(file["obs"][file["obs"].attrs["_index"]])
            return file["obsm"][key][:], xy, np.asarray(names)

    def models(self) -> dict[str, str | None]:
        return _embeddings(*self._head())

    def facts(self) -> dict[str, Any]:
        return tile_facts(self._head()[1])

    def _head(self) -> tuple[list[str], dict[str, Any]]:
        try:
            with h5py.File(self.path) as file:
                uns = read_elem(file["uns"][Keys.UNS]) if Keys.UNS in file.get("uns", ()) else {}
                return [k for k, v in file["obsm"].items() if isinstance(v, h5py.Dataset)], uns
        except (OSError, KeyError) as error:
            raise DataError(f"{str(self.path)!r} is not a table of tiles, or damaged: {error}.") from error

    def patient(self) -> str | None:
        with h5py.File(self.path) as file:
            column = read_elem(file["obs"][Keys.PATIENT]) if Keys.PATIENT in file["obs"] else []
        return _one_patient(self.name, pd.Series(column).unique())


@dataclass(eq=False)
class FileReader(BagReader):
    """Files of features as TRIDENT and CLAM write them, one per embedding."""

    paths: dict[str, Path] = field(kw_only=True)
    #: side of a tile in pixels of the full-resolution image, as the caller states it
    level0_px: float | None = field(default=None, kw_only=True)

    def read(self, key: str) -> tuple[Any, np.ndarray | None, Any]:
        check_key(self.paths, key, where=f"the files of slide {self.name!r}", hint="Name one with `key=`.")
        with _open_features(self.paths[key]) as file:
            features = file["features"][:]
            features = features[0] if features.ndim == 3 and len(features) == 1 else features
            xy = None
            if "coords" in file:
                corner, side = _corners(file["coords"]), self._side(self.paths[key], file["coords"])
                if len(corner) != len(features):
                    raise DataError(
                        f"{str(self.paths[key])!r} has {len(features)} features and {len(corner)} coordinates."
                    )
                # Corners are stored; where the side of a tile is not known, neither are the centres.
                xy = None if side is None else corner + side / 2
            ids = file["tiles"].asstr()[:] if "tiles" in file else np.arange(len(features)).astype(str)
        return features, xy, ids

    def models(self) -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        for key, path in self.paths.items():
            with _open_features(path) as file:
                named = file["features"].attrs.get("sealst_model")
            found[key] = named if named is not None else None if key == FEATURES else key
        return found

    def facts(self) -> dict[str, Any]:
        path = next(iter(self.paths.values()))
        with _open_features(path) as file:
            if "coords" not in file:
                return {}
            attrs, side = dict(file["coords"].attrs), self._side(path, file["coords"])
        names = {"patch_size": "crop_px", "overlap": "overlap_px", "mpp": "mpp"}
        known = {} if side is None else {"level0_px": side}
        return known | {ours: _number(attrs, theirs) for theirs, ours in names.items() if theirs in attrs}

    def lacks_side(self) -> bool:
        """Whether there are corners of tiles, but nothing says how large a tile is."""
        path = next(iter(self.paths.values()))
        with _open_features(path) as file:
            return "coords" in file and self._side(path, file["coords"]) is None

    def _side(self, path: Path, coords: h5py.Dataset) -> float | None:
        """Side of a tile in pixels of the full-resolution image, by the file or the one that listed its tiles."""
        stated = _stated_side(coords.attrs) or _listed_side(path, coords)
        if stated is not None and self.level0_px is not None and stated != self.level0_px:
            raise DataError(
                f"`level0_px` is {self.level0_px:g}, but tiles of {path.name} have {stated:g} px by the files "
                "themselves; leave the argument out."
            )
        return self.level0_px if stated is None else stated


def _listed_side(path: Path, coords: h5py.Dataset) -> float | None:
    """Side of a tile by the file of the folder ``patches`` that lists the same tiles."""
    for folder in (path.parent, path.parent.parent, path.parent.parent.parent):
        for name in (path.name, f"{path.stem}_patches.h5"):
            # One that cannot be read says nothing.
            if (other := folder / "patches" / name) != path and h5py.is_hdf5(other):
                with h5py.File(other) as file:
                    if "coords" in file and np.array_equal(_corners(file["coords"]), _corners(coords)):
                        return _stated_side(file["coords"].attrs)
    return None


def _corners(coords: h5py.Dataset) -> np.ndarray:
    corner = np.asarray(coords[:], dtype=np.float64)
    return (corner[0] if corner.ndim == 3 and len(corner) == 1 else corner)[:, :2]


def _stated_side(attrs: Any) -> float | None:
    """Side of a tile at full resolution from the attributes of its corners, of TRIDENT or of CLAM."""
    if "patch_size_level0" in attrs:
        return _number(attrs, "patch_size_level0")
    if "patch_size" in attrs and "downsample" in attrs:
        return _number(attrs, "patch_size") * _number(attrs, "downsample")
    if "patch_size" in attrs and "patch_level" in attrs and _number(attrs, "patch_level") == 0:
        return _number(attrs, "patch_size")
    return None


def _number(attrs: Any, name: str) -> float:
    """An attribute of tiles, of several numbers the first."""
    found = np.ravel(attrs[name])
    if not found.size or found.dtype.kind not in "iuf" or not np.isfinite(found[0]) or found[0] < 0:
        raise DataError(f"The attribute {name!r} of tiles must be a number, 0 or more, found {shown(attrs[name])}.")
    return float(found[0])


def _open_features(path: Path) -> h5py.File:
    try:
        file = h5py.File(path)
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be opened as HDF5: {error}.") from error
    features = file.get("features")
    if not isinstance(features, h5py.Dataset) or features.ndim not in (2, 3):
        found = listed(file)
        file.close()
        raise DataError(
            f"{str(path)!r} holds no dataset 'features' of tiles (found: {found}); expected TRIDENT's or CLAM's files."
        )
    return file


def _embeddings(obsm: Iterable[str], uns: Any) -> dict[str, str | None]:
    """Embeddings among the slots, and what made them."""
    made = dict(uns.get("embed", {})) if hasattr(uns, "get") else {}
    keys = [key for key in obsm if key in made or key.startswith("X_")]
    found = {key: MadeBy.of(made.get(key, {})) for key in keys}
    return {key: None if one is None else one.text for key, one in found.items()}


def tile_facts(uns: Any) -> dict[str, Any]:
    """Size of the tiles from the records of `pp.tile` and `pp.pair_crops`; empty where they do not say."""
    crops, tile = list(dict(uns.get("crops", {})).values()), dict(uns.get("tile", {}))
    if not crops:
        return {"level0_px": float(tile["tile_um"]) / float(tile["mpp"]), "mpp": float(tile["mpp"])} if tile else {}
    um, px, mpp = (float(crops[0][name]) for name in ("crop_um", "crop_px", "mpp"))
    step = float(tile.get("step_um", um))
    return {"level0_px": um / mpp, "crop_px": px, "overlap_px": max(0.0, um - step) / um * px, "mpp": mpp}


def _one_patient(slide: str, patients: Iterable[Any]) -> str | None:
    """The one patient of a slide; None where no tile states it."""
    names = dict.fromkeys(name for name in map(patient_text, patients) if name is not None)
    if len(names) > 1:
        raise DataError(f"Slide {slide!r} has tiles of {len(names)} patients, {listed(names)}; a slide is of one.")
    return next(iter(names), None)
