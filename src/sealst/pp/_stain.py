"""Bring the stain of sections to that of one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
from spatialdata import SpatialData
from spatialdata.transformations import get_transformation

from sealst import _section
from sealst._core.space.stain import STAIN_VALUES, Stain
from sealst._docs import documented
from sealst._errors import DataError
from sealst._keys import Keys
from sealst._logging import logger, quiet_import, quiet_squidpy, warn
from sealst._section import multiscale
from sealst._validate import check_choice, check_slot, listed
from sealst.pp._tissue import section_labels, tissue_at

#: pixels of the picture that stains are fitted on
_FIT_PIXELS = 1_000_000
_IMAGE, _MASK = "he", "tissue"


@documented
def fit_stain(
    sdata: SpatialData,
    method: str = "macenko",
    *,
    region: str | None = None,
    image_key: str | None = None,
    labels_key: str | None = None,
    table_key: str = Keys.TABLE,
) -> Stain:
    """Measure the stain of a section, as a reference for others.

    One fit per section by `squidpy.experimental.im.fit_stain_reference`, on the tissue of a coarse level.

    Parameters
    ----------
    sdata
        Section with an H&E image.
    method
        ``"macenko"`` (Macenko et al. 2009) and ``"vahadane"`` (Vahadane et al. 2016) find the colours of haematoxylin
        and eosin, ``"reinhard"`` (Reinhard et al. 2001) mean and spread of colour and brightness.
    region
        Region of the table; may be left out where there is only one.
    %(image_key)s
    %(labels_key)s
    %(table_key)s

    Returns
    -------
    `Stain`, which can be saved; nothing is written to `sdata`

    Raises
    ------
    DataError
        When there are several regions and none is named, no tissue is found, or the fit gives no stain.

    Examples
    --------
    >>> import sealst as sl
    >>> sdata = sl.datasets.synthetic(size_um=600)
    >>> sl.pp.fit_stain(sdata)
    Stain(method='macenko', section='P1_S1')
    """
    with quiet_import():
        from squidpy.experimental.im import fit_stain_reference

    check_choice("method", method, tuple(STAIN_VALUES))
    regions = _section.regions_of(_section.get_table(sdata, table_key), region)
    if len(regions) > 1:
        raise DataError(f"Several regions ({listed(r.name for r in regions)}): name one with `region=`.")
    image = _section.find_image(sdata, regions[0], image_key)
    labels = section_labels(sdata, regions[0], image, labels_key)
    picture, mask = _fit_picture(_section.he_image(sdata, image), labels, image)
    small = SpatialData(images={_IMAGE: multiscale([picture])}, labels={_MASK: multiscale([_as_labels(mask)])})
    try:
        with quiet_squidpy():
            found = fit_stain_reference(small, _IMAGE, method=method, tissue_mask_key=_MASK)
    except (RuntimeError, ValueError, np.linalg.LinAlgError) as error:
        raise DataError(
            f"No {method} stain could be fitted on {regions[0].section!r}: {error} Look at the tissue "
            "(`sl.pp.tissue(sdata)`), or try another `method`."
        ) from error
    names = ("stain_matrix", "white_point", "max_concentrations", "mu", "sigma")
    values = {name: getattr(found, name) for name in names if getattr(found, name) is not None}
    return Stain(method, values, regions[0].section)


@documented
def normalize_stain(
    sdata: SpatialData,
    reference: Stain,
    *,
    region: str | Sequence[str] | None = None,
    image_key: str | None = None,
    key_added: str | None = None,
    labels_key: str | None = None,
    keep_background: bool | None = None,
    table_key: str = Keys.TABLE,
) -> None:
    """Add images whose stain is that of a reference, computed only where they are read.

    One map of colours per section, from its own stain to the reference, by `squidpy.experimental.im.normalize_stains`:
    every pixel of every level goes through the same map, whatever crop or chunk it lies in. Macenko and Vahadane change
    the colours of the stains and leave their amounts; Reinhard also changes brightness and contrast. Use the result
    with ``sl.pp.pair_crops(sdata, image_key="<section>_he_norm")``; a model then expects sections prepared alike.

    Parameters
    ----------
    sdata
        Section(s) with an H&E image.
    reference
        Stain from `sealst.pp.fit_stain`, of another section as a rule.
    %(region)s
    %(image_key)s
    key_added
        Name of the new image, for a single region; by default ``"<image>_norm"``.
    %(labels_key)s
    keep_background
        Whether pixels that are no tissue stay as they are. By default only with Reinhard, which would tint the glass.
    %(table_key)s

    Returns
    -------
    None; writes for each region

    - ``sdata.images["<image>_norm" | key_added]``: multiscale uint8 (3, y, x), lazy, with the image's transformations
    - ``table.uns["sealst"]["stain"][key]``: image it was made from, the reference

    Raises
    ------
    DataError
        When there is an image of that name that this call did not write, several regions share one `key_added`, or the
        section's own stain cannot be fitted.

    Examples
    --------
    >>> import sealst as sl
    >>> reference = sl.pp.fit_stain(sl.datasets.synthetic(seed=0, size_um=600))
    >>> sdata = sl.datasets.synthetic(seed=1, size_um=600)
    >>> sl.pp.normalize_stain(sdata, reference)
    >>> sorted(sdata.images)
    ['P1_S1_he', 'P1_S1_he_norm']
    """
    with quiet_import():
        from squidpy.experimental.im import StainReference, normalize_stains

    if not isinstance(reference, Stain):
        raise TypeError(f"`reference` must be a Stain from `sl.pp.fit_stain`, found {type(reference).__name__}.")
    if key_added is not None:
        check_slot(key_added)
    table = _section.get_table(sdata, table_key)
    sources = {_section.find_image(sdata, one, image_key): one for one in _section.regions_of(table, region)}
    if key_added is not None and len(sources) > 1:
        raise DataError(f"`key_added` names one image, but there are {len(sources)} ({listed(sources)}); leave it out.")
    keep = reference.method == "reinhard" if keep_background is None else keep_background
    images, before = {}, _section.recorded(table, "stain")
    entries = dict(before)
    for image, one in sources.items():
        key = key_added or Keys.normalised_image(image)
        if key == image or (key in sdata.images and key not in before):
            raise DataError(
                f"`sdata.images[{key!r}]` is there, which `sl.pp.normalize_stain` did not write and would replace. "
                "Name another with `key_added=`, or rename or delete that image."
            )
        element = _section.he_image(sdata, image)
        labels = section_labels(sdata, one, image, labels_key)
        picture, mask = _fit_picture(element, labels, image)
        levels = []
        for level in _section.image_levels(element):
            data = level.data[:3]
            here = tissue_at(labels, element, chunks=data.chunks[1:]) if keep else None
            # Lazy. squidpy fits on the coarsest level it is given and applies to the finest, so that `picture` and
            # `mask` decide the map, the same for every level.
            masks = [_as_labels(mask)] if here is None else [_as_labels(here), _as_labels(mask)]
            pair = SpatialData(images={_IMAGE: multiscale([data, picture])}, labels={_MASK: multiscale(masks)})
            target = StainReference(method=reference.method, **reference.values)
            try:
                with quiet_squidpy():
                    out = normalize_stains(
                        pair, _IMAGE, target, inplace=False, tissue_mask_key=_MASK, preserve_background=keep
                    )
            except (RuntimeError, ValueError, np.linalg.LinAlgError) as error:
                raise DataError(
                    f"The stain of {one.section!r} could not be brought to the reference: {error} Look at its tissue "
                    "(`sl.pp.tissue(sdata)`), or fit the reference with another `method`."
                ) from error
            levels.append(out.transpose("c", "y", "x").data)
        images[key] = multiscale(levels, get_transformation(element, get_all=True))
        entries[key] = {"image_key": image, "keep_background": keep, "reference": reference.as_dict()}
    # These crops get other pixels under the same name.
    crops = table.uns.get(Keys.UNS, {}).get("crops", {})
    if used := [name for name, entry in crops.items() if entry["image_key"] in set(images) & set(sdata.images)]:
        warn(
            f"The crops of {listed(used)} are of an image that was replaced: what was embedded, predicted and measured "
            "from them is of the earlier stain. Run these calls again (`del` the columns of `sl.pp.quality` first)."
        )
    for key, element in images.items():
        if key in sdata.images:
            del sdata.images[key]
        sdata.images[key] = element
    _section.record(table, "stain", entries)
    logger.info("Added %s, stained as %r (%s)", listed(images), reference.section, reference.method)


def _fit_picture(element: Any, labels: Any, image_key: str) -> tuple[da.Array, np.ndarray]:
    """Small picture (3, y, x) of the whole image, and where it shows tissue."""
    coarsest = _section.image_levels(element)[-1].data[:3]
    step = int(np.ceil(np.sqrt(coarsest[0].size / _FIT_PIXELS)))
    picture = da.asarray(np.asarray(coarsest[:, ::step, ::step]))
    mask = np.asarray(tissue_at(labels, element, chunks=picture.chunks[1:]))
    if not mask.any():
        raise DataError(
            f"No tissue found in image {image_key!r}, so it has no stain to fit. Hand in a mask with `labels_key=`."
        )
    return picture, mask


def _as_labels(mask: np.ndarray | da.Array) -> da.Array:
    return da.asarray(mask).astype(np.uint8)
