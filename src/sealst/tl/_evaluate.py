"""The comparison that is always printed: frozen encoder, adapted encoder, direct head, floors."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from spatialdata import SpatialData

from sealst import _section
from sealst._core.device import autocast
from sealst._core.metrics import bootstrap_interval, gene_pearson, recall_at_k, retrieval_ranks
from sealst._core.probes import knn_impute, mean_baseline, ridge_probe
from sealst._data.tokens import to_images
from sealst._errors import DataError, LeakError, PanelError, SealstWarning
from sealst._keys import Keys
from sealst._logging import logger
from sealst._section import Region
from sealst._validate import check_positive, listed
from sealst.models import SealModel
from sealst.pp import check_split, rank_genes
from sealst.tl._inputs import as_sections, check_crops_fit, map_crops

FROZEN, ADAPTED = "frozen + ridge", "adapted + ridge"
HEAD, IMPUTED = "seal head", "seal retrieval"
COLOUR, MEAN = "colour + ridge", "mean"
_RECALL_AT = (1, 5, 10)
#: more genes than any section has
_ALL = 10**6
Kind = Literal["hvg", "heg"]


@dataclass(frozen=True)
class _Views:
    """One section as every method sees it; rows are spots with a crop."""

    name: str
    patient: str
    frozen: np.ndarray
    adapted: np.ndarray
    colour: np.ndarray
    #: adapted and gene embeddings where both are compared
    shared: np.ndarray
    gene: np.ndarray
    #: log1p-CP10k of the panel: the model's layer and the measured spot itself
    context: np.ndarray
    measured: np.ndarray
    #: bool (genes,): which of the panel's genes the section measures at all
    known: np.ndarray


def evaluate(
    model: SealModel,
    train: SpatialData | Sequence[SpatialData],
    test: SpatialData | Sequence[SpatialData],
    *,
    genes: Mapping[str, Sequence[str]] | None = None,
    n_genes: int = 50,
    allow_shared_patients: bool = False,
    table_key: str = Keys.TABLE,
    progress: bool | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare the adapted encoder with the frozen one on held-out sections.

    Probes (ridge regression on standardised features) are fitted on the training sections; their penalty is chosen by
    cross-validation over their patients (over sections where there is one patient). Targets are the measured
    log1p-CP10k of single spots. Genes of the panel that a training section does not measure are fitted on the others;
    those that a test section does not measure are left out of its scores, and the log says so.

    Parameters
    ----------
    model
        A SEAL model.
    train
        Sections the probes are fitted on; those the model was trained on.
    test
        Held-out sections, each reported by itself. Either side may be a `sealst.io.Collection`.
    genes
        Named sets of genes to score, a subset of the panel. Default: ``"hvg50"`` and ``"heg50"``, those of the panel
        that are most variable and most expressed in the training sections.
    n_genes
        Size of the default sets; named by the number they have where the panel is smaller.
    allow_shared_patients
        Whether a patient may stand on both sides, for in-sample checks; refused otherwise.
    table_key
        Table of each section.
    progress
        Progress bar; default ``settings.progress``.
    seed
        Seed of the bootstrap intervals.

    Returns
    -------
    Tidy DataFrame with columns `section`, `patient`, `method`, `genes`, `metric`, `value`, `low`, `high` (95 %
    bootstrap over genes), `pool` and `chance` (retrieval only):

    - metric ``"pearson"``: mean over genes of the correlation over the section's spots, for ``"frozen + ridge"``,
      ``"adapted + ridge"``, ``"seal head"``, ``"seal retrieval"`` (mean of the 50 training spots whose expression is
      nearest to the image; BLEEP, Xie et al. 2023), and the floors ``"colour + ridge"`` (mean and deviation of
      the crop's colour) and ``"mean"``
    - metrics ``"R@1"``, ``"R@5"``, ``"R@10"``, ``"median_rank"``: image → expression among the spots of the section;
      ``"adapted"`` and ``"frozen"`` by cosine with the gene embedding, ``"frozen + ridge"`` by cosine of the predicted
      with the measured profile

    Raises
    ------
    LeakError
        When a patient stands on both sides, or the model was trained on a patient of `test`.
    PanelError
        When a gene is not in the model's panel, or the panel's genes have no names.

    Examples
    --------
    >>> table = sl.tl.evaluate(model, train=[s1, s2], test=[s3])  # doctest: +SKIP
    """
    check_positive("n_genes", n_genes)
    model.panel.require_names()
    train, test = as_sections(train, "train"), as_sections(test, "test")
    if not allow_shared_patients:
        check_split(train, test, table_key=table_key)
        _check_unseen(model, test, table_key)
    sets = _gene_sets(model, train, genes, n_genes, table_key)
    views = partial(_views, model, table_key=table_key, show=progress)
    seen, held = (list(chain.from_iterable(map(views, side))) for side in (train, test))
    predictions = _predictions(model, seen, held)
    rows = [row for i, view in enumerate(held) for row in _pearson_rows(view, predictions, i, sets, model, seed)]
    rows += [row for i, view in enumerate(held) for row in _retrieval_rows(view, predictions[FROZEN][i], model)]
    return pd.DataFrame(rows)


def _gene_sets(
    model: SealModel, train: Sequence[SpatialData], genes: Mapping[str, Sequence[str]] | None, n: int, table_key: str
) -> dict[str, np.ndarray]:
    if genes is None:
        genes = {}
        for kind in get_args(Kind):
            kept = _ranked(model, train, kind, n, table_key)
            genes[f"{kind}{len(kept)}"] = kept
    position = {g.upper(): i for i, g in enumerate(model.panel.genes)}
    for name, members in genes.items():
        if not len(members):
            raise PanelError(f"Gene set {name!r} is empty.")
        if absent := [g for g in members if g.upper() not in position]:
            raise PanelError(f"Gene set {name!r} has genes outside the model's panel: {listed(absent)}.")
    return {name: np.array([position[g.upper()] for g in members]) for name, members in genes.items()}


def _ranked(model: SealModel, train: Sequence[SpatialData], kind: Kind, n: int, table_key: str) -> list[str]:
    """The n genes of the panel that rank first in the training sections."""
    known = {g.upper() for g in model.panel.genes}
    kept: list[str] = []
    # As many as the panel has: for the default panel its own order. A panel chosen otherwise may need them all, and one
    # joined from sections that measure different genes has some that not all of them measure.
    for top, least in ((len(known), None), (_ALL, None), (_ALL, 1)):
        if least is None and model.panel.availability is not None:
            continue
        with warnings.catch_warnings(), suppress(PanelError):
            warnings.simplefilter("ignore", SealstWarning)
            ranked = rank_genes(train, top, criterion=kind, min_sections=least, table_key=table_key)
            kept = [g for g in ranked if g in known][:n]
        if len(kept) == n:
            break
    return kept


def _check_unseen(model: SealModel, test: Sequence[SpatialData], table_key: str) -> None:
    def patients(sdata: SpatialData) -> list[str]:
        return _section.patients_of(_section.get_table(sdata, table_key))

    tested = set(chain.from_iterable(map(patients, test)))
    if shared := sorted(tested & set(model.provenance.get("patients", []))):
        raise LeakError(
            f"The model was trained on patient(s) {listed(shared)}, who are in `test`. Test on other patients, or pass "
            "`allow_shared_patients=True` for an in-sample check."
        )


def _views(model: SealModel, sdata: SpatialData, *, table_key: str, show: bool | None) -> list[_Views]:
    table = _section.get_table(sdata, table_key)
    regions = _section.regions_of(table)
    check_crops_fit(table, regions, model.crop)
    return [_view(model, sdata, table, region, show) for region in regions]


def _view(model: SealModel, sdata: SpatialData, table: AnnData, region: Region, show: bool | None) -> _Views:
    rows, parts = [], []
    for some, values in map_crops(
        sdata, table, [region], lambda c: _three(model, c), spec=model.crop, show=show, desc=region.section
    ):
        rows.append(some)
        parts.append(values)
    if not rows:
        raise DataError(f"Section {region.section!r} has no usable crop; see `.obs['crop_reason']`.")
    order = np.argsort(np.concatenate(rows))
    kept = np.concatenate(rows)[order]
    values = np.concatenate(parts)[order]
    frozen, adapted, colour = np.split(values, [model.dim, 2 * model.dim], axis=1)
    context = _section.expression(table, model.panel, kept, masked=True)
    known = model.panel.measured(table.var_names)
    if not known.all():
        logger.info(
            "Section %r measures %d of the panel's %d genes; the others are not scored.",
            region.section, known.sum(), len(known),
        )  # fmt: skip
    return _Views(
        name=region.section,
        patient=", ".join(_section.patients_of(table, region.rows)),
        frozen=frozen,
        adapted=adapted,
        colour=colour,
        shared=model.shared_images(adapted),
        gene=model.shared_genes(model.embed_genes(context)),
        context=context,
        measured=_section.expression(table, model.panel, kept, Keys.LOGNORM, masked=True),
        known=known,
    )


def _three(model: SealModel, crops: np.ndarray) -> np.ndarray:
    """Frozen embedding, adapted embedding and colour statistics of crops; the shared trunk runs once."""
    model.eval()
    images = to_images(crops, model.device)
    with torch.inference_mode(), autocast(model.device, model.encoder.spec.precision):
        n = model.n_trunk
        tokens = model.encoder.trunk(images, n) if n else None
        adapted = model.encoder(images) if tokens is None else model.encoder.tail(tokens, n)
        with model.frozen_encoder():
            frozen = model.encoder(images) if tokens is None else model.encoder.tail(tokens, n)
    colour = torch.cat([images.mean((2, 3)), images.std((2, 3))], dim=1)
    return torch.cat([frozen.float(), adapted.float(), colour.float()], dim=1).cpu().numpy()


def _predictions(model: SealModel, seen: list[_Views], held: list[_Views]) -> dict[str, list[np.ndarray]]:
    """Expression (n, panel) of every held-out section by every method; NaN for genes no training section measures."""
    patterns, which = np.unique(np.array([v.known for v in seen]), axis=1, return_inverse=True)
    out = {
        method: [np.full(v.measured.shape, np.nan, dtype=np.float32) for v in held]
        for method in (FROZEN, ADAPTED, COLOUR, HEAD, IMPUTED, MEAN)
    }
    # Genes are fitted together where the same sections measure them.
    for i in range(patterns.shape[1]):
        genes = np.flatnonzero(which.ravel() == i)
        having = [view for view, has in zip(seen, patterns[:, i], strict=True) if has]
        for method, parts in (_fitted(having, held, genes) if having else {}).items():
            for filled, part in zip(out[method], parts, strict=True):
                filled[:, genes] = part
    out[HEAD] = [model.predict_expression(v.adapted) for v in held]
    return out


def _fitted(seen: list[_Views], held: list[_Views], genes: np.ndarray) -> dict[str, list[np.ndarray]]:
    """Expression of some genes in every held-out section, by the methods that learn from the training sections."""
    y = np.concatenate([v.measured[:, genes] for v in seen])
    # Serial sections of one patient are no independent folds; they must do where there is only one patient.
    several = len({v.patient for v in seen}) > 1
    groups = np.concatenate([[v.patient if several else v.name] * len(v.measured) for v in seen])
    out: dict[str, list[np.ndarray]] = {}
    for method, feature in ((FROZEN, "frozen"), (ADAPTED, "adapted"), (COLOUR, "colour")):
        x = np.concatenate([getattr(v, feature) for v in seen])
        probe = ridge_probe(x, y, groups=groups)
        out[method] = [probe.predict(getattr(v, feature)) for v in held]
    reference = np.concatenate([v.gene for v in seen])
    k = min(50, len(reference))
    out[IMPUTED] = [knn_impute(v.shared, reference, y, k=k) for v in held]
    out[MEAN] = [mean_baseline(y, len(v.measured)) for v in held]
    return out


def _pearson_rows(
    view: _Views,
    predictions: dict[str, list[np.ndarray]],
    index: int,
    sets: dict[str, np.ndarray],
    model: SealModel,
    seed: int,
) -> list[dict[str, Any]]:
    rows = []
    # The same genes for every method: those that all of them can predict and the section measures.
    scored = view.known & np.all([np.isfinite(p[index]).all(axis=0) for p in predictions.values()], axis=0)
    if lost := int((view.known & ~scored).sum()):
        logger.info("%s: %d genes that no section of `train` measures are not scored", view.name, lost)
    for method, predicted in predictions.items():
        r = np.full(len(scored), np.nan)
        r[scored] = gene_pearson(predicted[index][:, scored], view.measured[:, scored])
        for name, columns in sets.items():
            values = r[columns][np.isfinite(r[columns])]
            low, high = bootstrap_interval(values, seed=seed) if len(values) > 1 else (np.nan, np.nan)
            value = float(values.mean()) if len(values) else np.nan
            rows.append(_row(view, method, "pearson", value, genes=name, low=float(low), high=float(high)))
    return rows


def _retrieval_rows(view: _Views, frozen_prediction: np.ndarray, model: SealModel) -> list[dict[str, Any]]:
    own = np.arange(len(view.gene))

    known = view.known & np.isfinite(frozen_prediction).all(axis=0)

    def z(x: np.ndarray) -> np.ndarray:
        # As the gene encoder sees it: the mean where a gene was not measured.
        return np.where(known, (x - model.panel.mean) / model.panel.std, 0)

    ranks = {
        "adapted": retrieval_ranks(view.shared, view.gene, own),
        "frozen": retrieval_ranks(model.shared_images(view.frozen), view.gene, own),
        FROZEN: retrieval_ranks(z(frozen_prediction), z(view.context), own),
    }
    rows = []
    for method, r in ranks.items():
        found = recall_at_k(r, _RECALL_AT, len(own))
        for metric in (*(f"R@{k}" for k in _RECALL_AT), "median_rank"):
            chance = found[metric.replace("R@", "chance@")] if "@" in metric else (len(own) + 1) / 2
            rows.append(_row(view, method, metric, float(found[metric]), pool=len(own), chance=float(chance)))
    return rows


def _row(view: _Views, method: str, metric: str, value: float, **more: Any) -> dict[str, Any]:
    empty = {"genes": "", "low": np.nan, "high": np.nan, "pool": np.nan, "chance": np.nan}
    return {"section": view.name, "patient": view.patient, "method": method, "metric": metric, "value": value} | (
        empty | more
    )
