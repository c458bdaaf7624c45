"""Bags as the files that multiple-instance pipelines read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from anndata import AnnData
from spatialdata import SpatialData

from sealst._data.bags.bags import Bags
from sealst._errors import DataError
from sealst._files import absolute, complete_file
from sealst._logging import logger, progress
from sealst._validate import check_file_name, check_positive, listed
from sealst.io._bags.readers import read_bags

#: µm per pixel times this is the magnification, by the convention that 0.25 µm per pixel is 40x
_MAGNIFIED = 10.0


def write_trident(
    bags: Bags | AnnData | SpatialData,
    path: str | Path,
    *,
    key: str | None = None,
    name: str | None = None,
    crop_px: float | None = None,
    level0_px: float | None = None,
    mpp: float | None = None,
    overwrite: bool = False,
) -> Path:
    """Write embeddings as TRIDENT lays them out, so that pipelines for multiple-instance learning take them unchanged.

    Parameters
    ----------
    bags
        Slides (`sealst.io.read_bags`), or sections with embeddings.
    path
        Folder of the job.
    key
        Embedding to write; default the one that the bags hold.
    name
        Name of the encoder in the folder's name; default `key`.
    crop_px
        Side of a tile as the encoder saw it, in pixels; default as recorded when it was cut.
    level0_px
        Side of a tile in pixels of the full-resolution image; default as recorded.
    mpp
        µm per pixel of the full-resolution image; default as recorded. Magnifications follow from it (0.25 is 40x).
    overwrite
        Whether to replace files of these slides.

    Returns
    -------
    The folder, with per slide

    - ``features_<name>/<slide>.h5``: ``features`` float32 (n, dim), ``coords`` int64 (n, 2), top left corners in pixels
      of the full-resolution image, with attributes ``patch_size``, ``patch_size_level0``, ``level0_magnification``,
      ``target_magnification``, ``overlap``, ``name`` and ``savetodir``; and ``tiles``, their ids
    - ``patches/<slide>_patches.h5``: the same ``coords``

    Every file appears complete or not at all.

    Raises
    ------
    DataError
        When a name cannot name a file, sizes of tiles are unknown, or a file exists and `overwrite` is False; nothing
        is written then. When a slide has no positions; those before it are written.

    Examples
    --------
    >>> sl.io.write_trident(bags, "trident", key="X_seal")  # doctest: +SKIP
    """
    if not isinstance(bags, Bags):
        bags = read_bags(bags, key=key)
    bags = bags if key is None else bags.with_key(key)
    target = absolute(path)
    for text, what in ((name or bags.key, "Encoder name"), *((slide, "Slide name") for slide in bags.obs.index)):
        check_file_name(str(text), what=what)
    features, patches = target / f"features_{name or bags.key}", target / "patches"
    stated = {"crop_px": crop_px, "level0_px": level0_px, "mpp": mpp}
    for label, value in stated.items():
        if value is not None:
            check_positive(label, value)
    given = {name: float(value) for name, value in stated.items() if value is not None}
    sizes = {slide: dict(bags.facts.get("tiles", {})).get(slide, {}) | given for slide in bags.obs.index}
    for slide, size in sizes.items():
        if missing := [name for name in stated if name not in size]:
            raise DataError(
                f"Slide {slide!r}: {listed(missing)} of its tiles are not recorded; state them, e.g. `crop_px=224, "
                "level0_px=448, mpp=0.25`."
            )
    taken = [s for s in sizes if (features / f"{s}.h5").exists() or (patches / f"{s}_patches.h5").exists()]
    if taken and not overwrite:
        raise DataError(f"Files of slide(s) {listed(taken)} exist in {str(target)!r}; replace with `overwrite=True`.")
    features.mkdir(parents=True, exist_ok=True)
    patches.mkdir(exist_ok=True)
    model = dict(bags.facts.get("models", {})).get(bags.key)
    for bag in progress(bags, "writing slides", total=len(bags), unit="slide"):
        size = sizes[bag.name]
        if bag.xy is None:
            raise DataError(
                f"Slide {bag.name!r} has no positions (`.obsm['spatial']`, or corners of tiles with `level0_px=` of "
                "`sl.io.read_bags`); pipelines need coordinates."
            )
        coords = np.rint(bag.xy - size["level0_px"] / 2).astype(np.int64)
        scale = size["level0_px"] / size["crop_px"]
        attributes = {
            "patch_size": round(size["crop_px"]),
            "patch_size_level0": round(size["level0_px"]),
            "level0_magnification": round(_MAGNIFIED / size["mpp"]),
            "target_magnification": round(_MAGNIFIED / (size["mpp"] * scale)),
            "overlap": round(size.get("overlap_px", 0.0)),
            "mpp": size["mpp"],
            "name": bag.name,
            "savetodir": str(patches),
        }
        with complete_file(patches / f"{bag.name}_patches.h5") as partial, h5py.File(partial, "w") as file:
            _write(file, "coords", coords, attributes)
        with complete_file(features / f"{bag.name}.h5") as partial, h5py.File(partial, "w") as file:
            made = {} if model is None else {"sealst_model": model}
            _write(file, "features", bag.features, {"name": bag.name, "savetodir": str(features)} | made)
            _write(file, "coords", coords, attributes)
            file.create_dataset(
                "tiles", data=np.asarray(bag.tiles).astype(str).astype(object), dtype=h5py.string_dtype()
            )
    logger.info("Wrote %d slides to %s", len(bags), features)
    return target


def _write(file: h5py.File, name: str, data: np.ndarray, attributes: dict[str, Any]) -> None:
    stored = file.create_dataset(name, data=data, chunks=True)
    stored.attrs.update(attributes)
