"""What ``sealst prepare`` does to one section."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from sealst._errors import DataError
from sealst._keys import Keys
from sealst._validate import listed
from sealst.cli._options import stated


def prepare_section(sdata: Any, options: Mapping[str, Any], facts: str) -> str:
    """Tile, name genes, pair crops, measure, normalise; returns the section's name."""
    from sealst import _section, pp

    key, min_tissue = options["table_key"], options["min_tissue"]
    tiled = key not in sdata.tables
    if tiled:
        _tile(sdata, options)
    elif options["harmonize"] and sdata.tables[key].n_vars:
        pp.harmonize_genes(sdata, **fitting(pp.harmonize_genes, options))
    _make_room(sdata, options)
    sizes = list(options["crop_um"])
    scale = fitting(pp.pair_crops, options) | {"crop_um": sizes if len(sizes) > 1 else sizes[0]}
    pp.pair_crops(sdata, **scale)
    if min_tissue is not None and not tiled:
        pp.tissue(sdata, min_tissue=min_tissue, table_key=key)
    if metrics := list(dict.fromkeys([*options["metrics"], *options["thresholds"]])):
        limits = options["thresholds"] or None
        pp.quality(sdata, metrics=metrics, thresholds=limits, table_key=key)
    table = _section.get_table(sdata, key)
    if options["normalize"] and table.n_vars:
        pp.normalize(sdata, **fitting(pp.normalize, options))
    _section.record(table, "prepare", {"options": facts})
    return _name(table)


def _make_room(sdata: Any, options: Mapping[str, Any]) -> None:
    """Take away crops, measures and layers, whoever made them: they are made anew in this copy."""
    from sealst import _section

    table = _section.get_table(sdata, options["table_key"])
    for one in _section.regions_of(table):
        for key in [Keys.crops(one.name), *(Keys.crop_size(one.name, f"{um:g}") for um in options["crop_um"])]:
            if key in sdata.shapes:
                del sdata.shapes[key]
    measured = [Keys.quality(metric) for metric in {*options["metrics"], *options["thresholds"]}]
    table.obs = table.obs.drop(columns=measured, errors="ignore")
    if options["normalize"] and table.n_vars:
        for key in (Keys.COUNTS, Keys.LOGNORM, Keys.CONTEXT):
            table.layers.pop(key, None)


def _tile(sdata: Any, options: Mapping[str, Any]) -> None:
    from sealst import pp

    if not sdata.images:
        raise DataError(
            f"There is no table {options['table_key']!r} and no image; found tables {listed(sdata.tables)}. Name the "
            "table with --table-key."
        )
    if sdata.tables:
        raise DataError(f"There is no table {options['table_key']!r}; found {listed(sdata.tables)}. Use --table-key.")
    given = {n: options[n] for n in ("step_um", "min_tissue", "image_key", "table_key")}
    pp.tile(sdata, crop_um=options["crop_um"][0], **stated(**given))


def fitting(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that are arguments of a function."""
    return stated(**{name: options[name] for name in inspect.signature(function).parameters if name in options})


def _name(table: Any) -> str:
    from sealst import _section

    names = table.obs[Keys.SECTION].astype(str).unique() if Keys.SECTION in table.obs else []
    if len(names) == 1:
        return str(names[0])
    return str(_section.regions_of(table)[0].name)


def summary(sdata: Any, table_key: str) -> dict[str, Any]:
    """What a prepared section holds."""
    from sealst import _section

    table = _section.get_table(sdata, table_key)
    crops = next(iter(table.uns[Keys.UNS]["crops"].values()))
    facts = {name: _section.patients_of(table) for name in (Keys.PATIENT,) if name in table.obs}
    return {
        "n_obs": int(table.n_obs),
        "n_usable": int(table.obs[Keys.CROP_OK].sum()),
        "n_genes": int(table.n_vars),
        "mpp": round(float(crops["mpp"]), 6),
        "crop_um": [float(um) for um in crops["sizes"]],
        "crop_px": int(crops["crop_px"]),
        "layers": sorted(_section.layer_names(table)),
    } | facts
