"""Predictions of a slide model, and which tiles they rest on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sealst import _logging, _section
from sealst._core.made_by import MadeBy
from sealst._data.bags.bags import Bag, Bags, BlankSlideError
from sealst._docs import documented
from sealst._errors import DataError
from sealst._keys import Keys
from sealst._logging import logger, warn
from sealst._section import Data, for_writing, sections_of
from sealst._validate import check_choice, check_embedding, check_key, check_slot, listed, patient_names
from sealst.models import SlideModel
from sealst.models._slides.model import SlideOutput
from sealst.tl._slide_models.fit import check_same_embedding

_CALL = "predict_slide"


@documented
def predict_slide(
    data: Data | Bags,
    model: SlideModel,
    *,
    target: str | None = None,
    key_added: str = Keys.ATTENTION,
    region: str | Sequence[str] | None = None,
    table_key: str = Keys.TABLE,
    device: str | None = None,
    progress: bool | None = None,
    copy: bool = False,
) -> pd.DataFrame | Data | None:
    """Predict labels of slides; in a table of tiles, also write the weight of every tile.

    Parameters
    ----------
    data
        Slides: bags (`sealst.io.read_bags`), or a section (several in one table are one slide each) with the embedding
        that the model was fitted on, see `sealst.tl.embed`.
    model
        What `sealst.tl.fit_slide` returned.
    target
        Target whose attention is written; default the first. Predictions are of all targets.
    key_added
        Slot in ``.obs``.
    region
        Region(s) of the table; by default all. The others keep what an earlier call with the same model and target
        wrote, and lose what another wrote.
    %(table_key)s
    %(model.device)s
    %(progress)s
    copy
        Whether to return a copy of `data` with the result, in place of writing to it.

    Returns
    -------
    Of bags a table with one row per slide: ``patient``; for classification the most probable class in ``<target>`` and
    ``<target>_p_<class>``; for regression ``<target>`` in its unit; for survival ``<time>_log_risk``, higher is worse.
    Slides without any embedding have missing values, with a warning.

    Otherwise None, or with ``copy=True`` a copy of `data`; in the table

    - ``.obs["seal_attention" | key_added]``: float64 (n_obs,), weight of the tile in the prediction, mean over the
      networks of the folds; sums to 1 over a slide; NaN for tiles without an embedding
    - ``.uns["sealst"]["predict_slide"][key]``: target, model, and ``predictions``, a table with columns ``slide``,
      ``output`` and ``value``

    Raises
    ------
    MissingKeyError
        When the embedding is missing.
    DataError
        When it was made by another model than the one the slide model was fitted on.

    Notes
    -----
    Attention says where the network looked, not what causes the label.

    Examples
    --------
    >>> sl.tl.predict_slide(sdata, model)  # doctest: +SKIP
    >>> sl.tl.predict_slide(bags, model).sort_values("grade_p_3")  # doctest: +SKIP
    """
    if not isinstance(model, SlideModel):
        raise TypeError(f"`model` must be a slide model (`sl.tl.fit_slide`), found {type(model).__name__}.")
    target = model.spec.targets[0] if target is None else target
    check_choice("target", target, model.spec.targets)
    check_slot(key_added)
    if device is not None:
        model.to(device)
    if isinstance(data, Bags):
        if copy:
            raise DataError("`copy=True` is for tables; of bags a new table is returned in any case.")
        return _of_bags(data, model, progress)
    table = _section.get_table(data, table_key)
    attention, looked, predictions = _of_table(table, model, target, region)
    given, written = for_writing(data, table_key, copy=copy)
    stored = _section.recorded(written, _CALL)
    entry: dict[str, Any] = {"target": target, "model": model.fingerprint, "embedding": model.spec.key}
    before = stored.get(key_added, {})
    if key_added in written.obs and not looked.all() and all(before.get(name) == entry[name] for name in entry):
        # Other slides of the table keep what the same model said about them.
        attention = np.where(looked, attention, written.obs[key_added].to_numpy(dtype=float))
        others = before["predictions"][~before["predictions"]["slide"].isin(predictions["slide"])]
        predictions = pd.concat([others, predictions], ignore_index=True)
    written.obs[key_added] = attention
    _section.record(written, _CALL, stored | {key_added: entry | {"predictions": predictions}})
    logger.info("Wrote .obs[%r]: attention of %s", key_added, model.spec.aggregator)
    return given if copy else None


def _of_bags(bags: Bags, model: SlideModel, show: bool | None) -> pd.DataFrame:
    key, expected, made = model.spec.key, model.spec.embedding, dict(bags.facts.get("models", {}))
    same = [name for name in bags.keys if expected is not None and made.get(name) == expected]
    if key not in bags.keys and len(same) == 1:
        # Files may call the model's embedding otherwise.
        (key,) = same
        logger.info("%r are the embeddings %r that the slide model was fitted on", key, model.spec.key)
    check_key(bags.keys, key, where="the bags' embeddings", hint="The slide model was fitted on it.")
    bags = bags.with_key(key)
    check_same_embedding(model.spec.embedding, bags)
    _warn_seen(set(bags.obs[Keys.PATIENT].dropna()), model)
    rows: list[dict[str, Any]] = []
    for i in _logging.progress(range(len(bags)), "predicting slides", show=show, unit="slide"):
        found: dict[str, Any] = {}
        bag: Bag | None = None
        with suppress(BlankSlideError):
            bag = bags[i]
        if bag is not None and len(bag):
            for name in model.spec.targets:
                found |= _outputs(model, name, model.predict(bag.features, bag.xy, target=name))
        rows.append(found)
    if blank := [name for name, found in zip(bags.obs.index, rows, strict=True) if not found]:
        text = f"Slide(s) {listed(blank)} have no tile with an embedding {bags.key!r}"
        if len(blank) == len(bags):
            raise DataError(f"{text}; there is nothing to predict from.")
        warn(f"{text}; their predictions are missing.")
    table = pd.DataFrame(rows, index=bags.obs.index)
    table.insert(0, Keys.PATIENT, bags.obs[Keys.PATIENT])
    return table


def _outputs(model: SlideModel, target: str, output: SlideOutput) -> dict[str, Any]:
    """One slide's row of a target."""
    spec = model.spec
    if spec.classes:
        names = spec.classes[target]
        shares = {f"{target}_p_{name}": float(p) for name, p in zip(names, output.value, strict=True)}
        return {target: names[int(output.value.argmax())], **shares}
    return {target if spec.event is None else f"{target}_log_risk": float(output.value[0])}


def _of_table(
    table: AnnData, model: SlideModel, target: str, region: str | Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Attention of every row, NaN where there is none; which rows were looked at; predictions in long form."""
    key = model.spec.key
    check_key(list(table.obsm), key, where="`.obsm`", hint="The slide model was fitted on it; run `sl.tl.embed`.")
    entry = MadeBy.of(_section.recorded(table, "embed").get(model.spec.key, {}))
    made = None if entry is None else entry.text
    expected = model.spec.embedding
    if made is not None and expected is not None and made != expected:
        raise DataError(
            f"`.obsm[{model.spec.key!r}]` was made by model {made!r}, but the slide model was fitted on "
            f"embeddings of {expected!r}. Embed the tiles with that model, or fit again."
        )
    check_embedding(table.obsm[key], where=f"`.obsm[{key!r}]`")
    features = np.asarray(table.obsm[key], dtype=np.float32)
    xy = np.asarray(table.obsm[Keys.SPATIAL], dtype=float) if Keys.SPATIAL in table.obsm else None
    attention, looked = np.full(table.n_obs, np.nan), np.zeros(table.n_obs, dtype=bool)
    rows: list[tuple[str, str, str]] = []
    for part in sections_of(table, region):
        looked[part.rows] = True
        kept = part.rows[np.isfinite(features[part.rows]).all(axis=1)]
        if not len(kept):
            raise DataError(f"No tile of slide {part.section!r} has an embedding in `.obsm[{key!r}]`.")
        for name in model.spec.targets:
            output = model.predict(features[kept], None if xy is None else xy[kept], target=name)
            for column, value in _outputs(model, name, output).items():
                rows.append((part.section, column, str(value)))
            if name == target:
                attention[kept] = output.attention
    if Keys.PATIENT in table.obs:
        _warn_seen(set(patient_names(table.obs[Keys.PATIENT]).dropna()), model)
    return attention, looked, pd.DataFrame(rows, columns=["slide", "output", "value"])


def _warn_seen(patients: set[str], model: SlideModel) -> None:
    if seen := sorted(patients & set(model.provenance.get("patients", []))):
        warn(
            f"The slide model was fitted on patient(s) {listed(seen)}; what it says about them is not held out "
            "(`model.evaluation.predictions` is)."
        )
