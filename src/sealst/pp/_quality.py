"""Measures of each crop's picture: focus, folds, brightness, staining."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from spatialdata import SpatialData
from spatialdata.models import Image2DModel

from sealst import _section
from sealst._data.crops.plain import PlainCrops
from sealst._data.crops.reader import iter_crops
from sealst._docs import documented
from sealst._errors import DataError
from sealst._keys import Keys
from sealst._logging import logger, quiet_import, quiet_squidpy
from sealst._logging import progress as progress_bar
from sealst._validate import check_choice, listed
from sealst.pp._crop_reasons import (
    LOW_QUALITY,
    NOT_PAIRED,
    OUTSIDE,
    base_reasons,
    crop_reasons,
    of_present_crops,
    write_reasons,
)

#: what squidpy measures on a picture alone; its tissue fraction is the business of `pp.tissue`
METRICS = (
    *("tenengrad", "var_of_laplacian", "variance", "fft_high_freq_energy", "haar_wavelet_energy"),
    *("brightness_mean", "brightness_std", "entropy"),
    *("hematoxylin_mean", "hematoxylin_std", "eosin_mean", "eosin_std", "he_ratio", "fold_fraction"),
)
_BATCH = 64


@documented
def quality(
    sdata: SpatialData,
    *,
    metrics: Sequence[str] = ("tenengrad", "var_of_laplacian", "brightness_mean", "fold_fraction"),
    thresholds: Mapping[str, tuple[float | None, float | None]] | None = None,
    region: str | Sequence[str] | None = None,
    table_key: str = Keys.TABLE,
    progress: bool | None = None,
) -> None:
    """Measure the pictures of the crops, and set aside those outside the thresholds.

    The measures are those of `squidpy.experimental.im.qc_image`, taken on the crops as the encoder sees them, so they
    compare between sections only at the same `crop_um` and `crop_px`. What was measured on the present crops is not
    measured again while its column is there; thresholds are applied anew in every call. There is no measure of pen
    marks: squidpy has none. Staining and folds assume H&E.

    Parameters
    ----------
    sdata
        Section(s) with crops, see `sealst.pp.pair_crops`.
    metrics
        Focus, higher is sharper: ``"tenengrad"`` (mean squared Sobel gradient), ``"var_of_laplacian"``, ``"variance"``
        (of grey levels from 0 to 255), ``"fft_high_freq_energy"``, ``"haar_wavelet_energy"`` (shares, 0 to 1). Light:
        ``"brightness_mean"``, ``"brightness_std"`` (grey levels), ``"entropy"`` (bits). Stain, in the units of
        `skimage.color.rgb2hed`: ``"hematoxylin_mean"``, ``"hematoxylin_std"``, ``"eosin_mean"``, ``"eosin_std"``,
        ``"he_ratio"``. Artefacts: ``"fold_fraction"`` (share of dark, saturated pixels).
    thresholds
        Lowest and highest acceptable value of a metric, None for no limit, e.g. ``{"fold_fraction": (None, 0.1)}``. A
        blurred crop is best told from its peers, e.g. by a low quantile of the section. Without thresholds no crop is
        set aside by its quality.
    %(region)s
    %(table_key)s
    %(progress)s

    Returns
    -------
    None; writes

    - ``table.obs["quality_<metric>"]``: float64, NaN where spots are not paired or outside the image
    - ``table.obs["crop_ok"]``, ``table.obs["crop_reason"]``: ``"low quality: <metric>"`` where a usable crop is outside
      the thresholds, naming the first one missed; ``"little tissue"`` comes first. A later call decides again
    - ``table.uns["sealst"]["quality"][region]``: thresholds, crops measured, metrics

    Raises
    ------
    OrderError
        When crops are missing.
    DataError
        When a metric is unknown or a threshold has no metric or no range.

    Examples
    --------
    >>> import sealst as sl
    >>> sdata = sl.datasets.synthetic(size_um=600)
    >>> sl.pp.pair_crops(sdata)
    >>> sl.pp.quality(sdata, metrics=["tenengrad"], thresholds={"tenengrad": (10, None)}, progress=False)
    >>> "quality_tenengrad" in sdata.tables["table"].obs
    True
    """
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    for name in names:
        check_choice("metrics", name, METRICS)
    limits = {}
    for name, pair in (thresholds or {}).items():
        if name not in names:
            raise DataError(f"`thresholds` names {name!r}, which is not in `metrics` ({listed(names)}); add it there.")
        if isinstance(pair, str) or not isinstance(pair, Sequence | np.ndarray) or len(pair) != 2:
            raise DataError(f"`thresholds[{name!r}]` must be (lowest, highest), None for no limit; found {pair!r}.")
        least, most = -np.inf if pair[0] is None else float(pair[0]), np.inf if pair[1] is None else float(pair[1])
        if not least <= most:
            raise DataError(f"`thresholds[{name!r}]` must run from low to high, found {pair!r}.")
        limits[name] = np.array([least, most])
    _section.needs_pixels(sdata)
    table = _section.get_table(sdata, table_key)
    columns = {
        Keys.quality(m): np.array(table.obs.get(Keys.quality(m), np.full(table.n_obs, np.nan)), dtype=float)
        for m in names
    }
    entries = _section.recorded(table, "quality")
    regions = _section.regions_of(table, region)
    for one in regions:
        paired = _section.region_crops(sdata, table, one)
        crops = paired.definition
        before = entries.get(one.name, {})
        kept = [m for m in before["metrics"] if Keys.quality(m) in table.obs] if of_present_crops(before, crops) else []
        missing = [m for m in names if m not in kept]
        if missing:
            # NaN where a crop is not inside the image.
            inside = np.flatnonzero(~np.isin(base_reasons(table)[one.rows].astype(str), [OUTSIDE, NOT_PAIRED]))
            boxes, values = paired.every_box[inside], np.full((len(one.rows), len(missing)), np.nan)
            with progress_bar(None, desc="measuring crops", total=len(boxes), show=progress) as bar:
                read = iter_crops(paired.levels, boxes, paired.crop_px, batch_size=_BATCH)
                for places, pixels in PlainCrops(one.section).watch(read):
                    values[inside[places]] = measure(pixels, missing)
                    bar.update(len(places))
            for m, column in zip(missing, values.T, strict=True):
                columns[Keys.quality(m)][one.rows] = column
        entries[one.name] = {"metrics": np.array([*kept, *missing], dtype=object), "thresholds": limits}
        entries[one.name] |= {key: crops[key] for key in ("image_key", "boxes", "crop_px")}
    reasons = crop_reasons(table, columns, _section.recorded(table, "tissue"), entries)
    for name, column in columns.items():
        table.obs[name] = column
    write_reasons(table, reasons)
    _section.record(table, "quality", entries)
    low = sum(str(reason).startswith(LOW_QUALITY) for reason in reasons)
    logger.info("Measured %s on the crops of %d region(s); %d crops set aside", listed(names), len(regions), low)


def measure(crops: np.ndarray, metrics: Sequence[str]) -> np.ndarray:
    """Measures of crops uint8 (n, px, px, 3) by squidpy, float64 (n, metrics)."""
    with quiet_import():
        from squidpy.experimental.im import QCMetric, qc_image

    # squidpy measures the tiles of an image: the crops, one below the other, are the tiles of a tall one.
    px = crops.shape[1]
    tall: Any = np.moveaxis(crops.reshape(-1, px, 3), 2, 0)
    pile = SpatialData(images={"crops": Image2DModel.parse(tall, dims=("c", "y", "x"), chunks=(3, px, px))})
    with quiet_squidpy():
        qc_image(
            pile,
            "crops",
            metrics=[QCMetric(name) for name in metrics],
            tile_size=(px, px),
            detect_outliers=False,
            detect_tissue=False,
            progress=False,
            preview=False,
        )
    return np.asarray(pile.tables["qc_img_crops"].X, dtype=float)
