"""Models of folds, trained as the final one is, and what they predict for the patients that they have not seen."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from sealst import _section
from sealst._core.genes.panel import GenePanel
from sealst._core.scores.ceiling import half_correlation
from sealst._core.scores.intervals import Residuals
from sealst._core.scores.reliability import LEAST_SPOTS, SectionScores, score_section
from sealst._core.seeds import mixed_seed
from sealst._core.space.views import N_SYMMETRIES
from sealst._core.splits import evenly
from sealst._errors import DataError, LeakError, PanelError, SealstError, SealstWarning
from sealst._keys import Keys
from sealst._logging import logger, warn
from sealst._section import Region
from sealst._validate import listed
from sealst.models import Reliability, SealModel
from sealst.models._intervals import Intervals, intervals_of
from sealst.models._seal.reliability import reliability_of
from sealst.pp import Split, select_genes, split
from sealst.tl._embed.embed import embed_crops, embed_fields
from sealst.tl._embed.predict import default_readout, predicted_values
from sealst.tl._evaluate.cohorts import SectionCohort
from sealst.tl._evaluate.folds import check_warmup
from sealst.tl._evaluate.scored_genes import columns_of, ranked_sets
from sealst.tl._pathways.pathways import score_sets

#: more patients (or sections) than this are held out in groups
MOST_FOLDS = 5
#: genes of the sets whose mean is reported, as of `tl.evaluate`
_N_SET = 50
CHOICES = ("patient", "section")
#: values (spots times genes) of held-out spots that are kept for intervals, all sections together, and the fewest spots
#: of a section
_MOST_VALUES, _LEAST_SPOTS = 2**24, 100

#: trains the model of a fold on its sections: with this panel, in the folder of this name
Train: TypeAlias = Callable[[Sequence[SpatialData], GenePanel, str], SealModel]


@dataclass(frozen=True)
class Crossfit:
    """Which patients (or sections) are held out in turn, and what is scored on them."""

    by: str
    cohort: SectionCohort
    folds: Sequence[Split]
    table_key: str
    #: gene sets as edges, whose activity is scored
    net: pd.DataFrame | None = None

    def sides(self, fold: Split) -> tuple[Sequence[SpatialData], Sequence[SpatialData]]:
        """Sections that a fold trains on, and those that it holds out."""
        return self.cohort.whole(fold), self.cohort.whole(Split(fold.test, {}, fold.name))


class Found(NamedTuple):
    """What held-out sections say of a model."""

    reliability: Reliability | None
    intervals: Intervals | None


#: scores of a held-out section, and some of its spots
_Held: TypeAlias = tuple[SectionScores, Residuals]


def planned(
    sections: Sequence[SpatialData],
    by: str,
    *,
    net: pd.DataFrame | None,
    warmup_patients: set[str] | None,
    stopping_patients: set[str],
    allow_shared_patients: bool,
    table_key: str,
) -> Crossfit:
    """Folds of a cross-fitting, checked before anything is trained."""
    cohort = SectionCohort([sections], table_key)
    patients = {p for part in cohort.parts() for p in _section.patients_of(part.table, part.rows)}
    if by == "patient" and len(patients) < 2:
        raise DataError(
            f"`crossfit='patient'` holds out patients in turn, and all training sections are of {listed(patients)}. "
            "Add sections of other patients; `crossfit='section'` says how it does on further sections of this one."
        )
    # Of sections the user has asked for patients on both sides.
    options: dict[str, Any] = {"by": by, "allow_shared_patients": by == "section", "table_key": table_key}
    folds = split(sections, **options)
    if len(folds) > MOST_FOLDS:
        folds = split(sections, n_folds=MOST_FOLDS, **options)
    plan = Crossfit(by, cohort, folds, table_key, net)
    try:
        for fold in folds:
            plan.sides(fold)
    except DataError as error:
        raise DataError(
            f"`crossfit={by!r}` cannot hold out a {by} and nothing else: spots that are held out and spots that are "
            "trained on share a SpatialData. Keep one section of one patient in each, or leave `crossfit` out."
        ) from error
    if not allow_shared_patients:
        check_warmup(cohort.parts(), folds, warmup_patients)
    if shared := sorted(patients & stopping_patients):
        raise LeakError(
            f"Training stops by `validation`, which has patient(s) {listed(shared)} of the training sections, so no "
            "fold could hold them out. Validate on other patients, or leave `crossfit` or `params.patience` out."
        )
    if by == "section" and len(patients) < len(cohort.parts()):
        warn(
            "`crossfit='section'` holds out sections of patients that the model sees in training: what it says holds "
            "for further sections of these patients, not for new ones."
        )
    return plan


def crossfitted(model: SealModel, plan: Crossfit, train: Train, *, refit: bool, show: bool | None) -> Found:
    """Reliability and intervals of a trained model, by models of folds; neither where a fold cannot be trained.

    Parameters
    ----------
    model
        The final model, trained on all sections.
    plan
        See `planned`.
    train
        Trains the model of a fold as the final one was trained.
    refit
        Whether means and deviations of the panel are those of the fold's own training sections.
    show
        Progress bars; None follows the settings.
    """
    try:
        found = _measured(model, plan, train, refit=refit, show=show)
    except SealstError as error:
        # The model itself is trained, and must not be lost.
        warn(f"The model is trained, but its reliability stays unknown: {error}")
        return Found(None, None)
    if found.reliability is not None:
        logger.info("%s", found.reliability.summary())
    return found


def _measured(model: SealModel, plan: Crossfit, train: Train, *, refit: bool, show: bool | None) -> Found:
    held_out: list[_Held] = []
    activities = [] if plan.net is None else _scorable(plan.net, model.panel)
    for i, fold in enumerate(plan.folds, start=1):
        logger.info("cross-fitting: fold %d of %d, %s held out", i, len(plan.folds), listed(fold.test))
        seen, held = plan.sides(fold)
        panel = model.panel
        if refit:
            panel = select_genes(seen, criterion=panel.genes, layer=panel.layer, table_key=plan.table_key)
        of_one = partial(_held_out, train(seen, panel, f"fold-{i}"), plan, activities, show=show)
        # By map: a variable of a loop would keep a section while the next one is opened.
        held_out += chain.from_iterable(map(of_one, held))
    sets = columns_of(ranked_sets(plan.cohort.groups[0], _N_SET, model.panel, plan.table_key), model.panel)
    scores, genes = [one for one, _ in held_out], model.panel.genes
    known = reliability_of(model.fingerprint, scores, genes, by=plan.by, sets=sets, activities=activities)
    return Found(known, _intervals(model, plan, [spots for _, spots in held_out]))


def _intervals(model: SealModel, plan: Crossfit, residuals: Sequence[Residuals]) -> Intervals | None:
    """Intervals of what the model predicts; None, with the reason in the log, where too few were held out."""
    options: dict[str, Any] = {"by": plan.by, "readout": model.readouts[0], "views": N_SYMMETRIES}
    try:
        return intervals_of(model.fingerprint, residuals, model.panel.genes, **options)
    except DataError as error:
        logger.info("no intervals are kept: %s", error)
        return None


def _scorable(net: pd.DataFrame, panel: GenePanel) -> list[str]:
    """Gene sets that the panel has enough genes of."""
    probe = pd.DataFrame(np.random.default_rng(0).random((2, len(panel))), columns=list(panel.genes))
    try:
        return list(score_sets(probe, net).scores.columns)
    except PanelError as error:
        warn(f"No gene set is scored in cross-fitting. {error}")
        return []


def _held_out(
    model: SealModel, plan: Crossfit, activities: Sequence[str], sdata: SpatialData, *, show: bool | None
) -> list[_Held]:
    """Scores and spots of a SpatialData's sections by a model that has not seen them, of what `tl.predict` writes."""
    paired = _section.paired_table(sdata, plan.table_key, trained_on=model.crop)
    table = paired.table
    readout = default_readout(model, table)
    embedding, entry = embed_crops(paired, model, views=N_SYMMETRIES, show=show)
    if model.fields_of(readout):
        embedding, _ = embed_fields(paired, model, embedding, entry, views=N_SYMMETRIES, show=show)
    values = predicted_values(sdata, table, model, embedding, readout)
    found = []
    for one in _section.sections_of(table):
        rows = one.rows[np.isfinite(values[one.rows]).all(axis=1)]
        if len(rows) < LEAST_SPOTS:
            warn(f"Section {one.section!r} has {len(rows)} spot(s) with a usable crop and is not scored.")
            continue
        found.append(_scored(table, one, rows, values[rows], model, plan, activities))
    return found


def _scored(
    table: AnnData,
    region: Region,
    rows: np.ndarray,
    predicted: np.ndarray,
    model: SealModel,
    plan: Crossfit,
    activities: Sequence[str],
) -> _Held:
    panel, seed = model.panel, mixed_seed(region.section) % 2**32
    measured = _section.expression(table, panel, rows, Keys.LOGNORM, masked=True)
    known = panel.measured(table.var_names)
    half = halves(table, panel, rows, seed=seed)
    n_sections = sum(len(fold.test) for fold in plan.folds)
    some = evenly(len(rows), max(_LEAST_SPOTS, _MOST_VALUES // (len(panel) * n_sections)))
    patient = "/".join(_section.patients_of(table, rows))
    spots = Residuals(region.section, patient, predicted[some], measured[some].astype(np.float32), known)
    sides = [predicted, measured]
    if activities and plan.net is not None:
        acts = [_activity(np.where(known, side, 0), panel, plan.net, activities) for side in sides]
        # A set that one side cannot be scored on is not scored.
        scored = np.all([np.isfinite(act).any(axis=0) for act in acts], axis=0)
        sides = [np.hstack([side, _filled(act)]) for side, act in zip(sides, acts, strict=True)]
        known = np.concatenate([known, scored])
        half = np.concatenate([half, np.full(len(activities), np.nan)])
    scores = score_section(*sides, section=region.section, patient=patient, known=known, half=half, seed=seed)
    return scores, spots


def halves(table: AnnData, panel: GenePanel, rows: np.ndarray, *, seed: int) -> np.ndarray:
    """Correlation of halves of the counts of some rows, by gene of a panel; NaN where there are no counts."""
    found, known = np.full(len(panel), np.nan), panel.measured(table.var_names)
    if Keys.COUNTS in table.layers:
        columns = panel.align(table.var_names).columns[known]
        counts = table.layers[Keys.COUNTS][rows]
        found[known] = half_correlation(counts, columns, target_sum=panel.target_sum, seed=seed)
    return found


def _activity(values: np.ndarray, panel: GenePanel, net: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
    """Activity of gene sets (spots, sets); NaN where it cannot be scored."""
    frame = pd.DataFrame(values, columns=list(panel.genes))
    with warnings.catch_warnings():
        # Sets that are left out were named when the folds were planned.
        warnings.simplefilter("ignore", SealstWarning)
        try:
            scores = score_sets(frame, net).scores
        except PanelError:
            return np.full((len(values), len(names)), np.nan)
    return scores.reindex(columns=list(names)).to_numpy(dtype=np.float64)


def _filled(activity: np.ndarray) -> np.ndarray:
    """Activity with the mean of the others in spots without any expression, where it is not defined."""
    known = np.isfinite(activity)
    mean = np.where(known, activity, 0).sum(axis=0) / known.sum(axis=0).clip(min=1)
    filled: np.ndarray = np.where(known, activity, mean)
    return filled
