"""Slide-level models: labels of slides from bags of tile embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from sealst import _logging
from sealst._core.device import resolve_device
from sealst._core.scores.slide_evaluation import SlideEvaluation
from sealst._core.seeds import mixed_seed, seeded
from sealst._core.splits import Fold, check_sides, inner_split, named_folds, patient_folds, strata_of
from sealst._data.bags.bags import Bags
from sealst._data.bags.memory import BagStore, same_slides
from sealst._docs import documented
from sealst._errors import DataError, LeakError
from sealst._keys import Keys
from sealst._logging import logger
from sealst._settings import resolve_seed
from sealst._train.params import SlideParams, slide_params
from sealst._train.slide_engine import SURVIVAL, Job, fit_net
from sealst._validate import check_key, listed, need, whole
from sealst._version import __version__
from sealst.models import SlideModel, SlideSpec
from sealst.models._slides.aggregators import check_aggregator
from sealst.models._slides.model import SlideNet, averaged, slide_order
from sealst.tl._slide_models.labels import Labels, check_enough, labels_of, task_of
from sealst.tl._slide_models.rows import FLOOR, Outcome, floor_of, prediction_table, score_table


@documented
def fit_slide(
    bags: Bags,
    target: str | Sequence[str],
    *,
    task: str | None = None,
    event: str | None = None,
    aggregator: str = "abmil",
    folds: int | str = 5,
    test: Bags | None = None,
    compare: Sequence[str] | Mapping[str, Bags] | str | None = None,
    params: SlideParams | Mapping[str, Any] | str | Path | None = None,
    n_bootstrap: int = 1000,
    seed: int | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> SlideModel:
    """Fit a model of slide labels on tile embeddings, with cross-validation by patient.

    Every fold trains a network that never sees the fold's patients; what it says about them is the evaluation. The
    networks together are the model. The same folds and seeds are run on the frozen encoder's embeddings, so that the
    difference is the adapter's.

    Parameters
    ----------
    bags
        Slides with their labels, from `sealst.io.read_bags`.
    target
        Column of ``bags.obs`` to predict, or several, each with networks of its own. For survival the time to the event
        or to censoring.
    task
        ``"classification"``, ``"regression"`` or ``"survival"``; None infers it from the column and logs why.
    event
        For survival: column with 1 (or True) where the event was seen and 0 where the patient was censored, or words
        for them (``"1:DECEASED"`` and ``"0:LIVING"``, ``"dead"`` and ``"alive"``, ``"yes"`` and ``"no"``).
    aggregator
        How tiles become one prediction, see `sealst.models.list_aggregators`.
    folds
        Number of folds, stratified by label and grouped by patient; or a column of ``bags.obs`` whose values are the
        folds, such as the hospital.
    test
        Slides that are kept out altogether; the averaged networks are scored on them, as ``model.test_evaluation``.
    compare
        Embeddings to stand beside: names of the bags' own, or other bags of the same slides by name. Default
        ``"X_frozen"`` where the bags have it; ``[]`` is none.
    params
        `sealst.tl.SlideParams`, a mapping of its fields or a YAML file with them.
    n_bootstrap
        Draws of patients behind the intervals; 0 leaves them out.
    seed
        Seed of folds, weights, order of slides, draws of tiles and of patients; default ``settings.seed``.
    %(device)s
    %(progress)s

    Returns
    -------
    The model. ``model.evaluation`` is a `sealst.tl.SlideEvaluation` of the held-out slides with these metrics:

    - classification: ``"auroc"``, ``"average_precision"`` (of the last of two classes; of more, mean of one against
      rest), ``"balanced_accuracy"``, ``"f1"`` (mean over classes), ``"ece"``, ``"brier"``
    - regression: ``"pearson"``, ``"spearman"``, ``"r2"``, ``"mae"``
    - survival: ``"c_index"`` (Harrell, pairs within folds), ``"c_index_ipcw"`` (Uno)

    ``"floor"`` is what the labels of a fold's training slides reach alone, as one constant for all slides it holds
    out: the shares of the classes, the mean, or no risk. Metrics of order are those of a constant (AUROC 0.5,
    correlation 0). The first four of classification are NaN where no held-out slide is of one of the classes.

    Raises
    ------
    LeakError
        When a patient stands on both sides of a fold or in `test`, or a slide does under two names.
    DataError
        When a label is known of too few patients, holds one class, or is not what the task needs.
    OrderError
        When torchmil or scikit-survival is needed and not installed: ``pip install "sealst[slide]"``.

    Notes
    -----
    Features are standardised with the moments of the training slides. A fifth of the training patients (up to a third
    where classes are small) decides when to stop, where there are at least ten and enough of every class. Slides
    without a label are left out; held-out slides are always looked at with all of their tiles.

    Examples
    --------
    >>> bags = sl.io.read_bags("embedded", labels="labels.csv")  # doctest: +SKIP
    >>> model = sl.tl.fit_slide(bags, "grade")  # doctest: +SKIP
    >>> model.evaluation.summary()  # doctest: +SKIP
    """
    if not isinstance(bags, Bags):
        raise TypeError(f"`bags` must be Bags; make them with `sl.io.read_bags(...)`. Found {type(bags).__name__}.")
    bags = _by_name(bags)
    chosen = slide_params(params)
    # Before slides are read and compared, which takes long.
    check_aggregator(aggregator)
    n_bootstrap = whole("n_bootstrap", n_bootstrap, least=0)
    seed = resolve_seed(seed)
    event = None if event is None else str(event)
    targets = [str(name) for name in ([target] if isinstance(target, str) else dict.fromkeys(target))]
    if not targets:
        raise DataError("`target` is empty; name a column of `bags.obs`.")
    found_task = task_of(bags.obs, targets, task, event)
    if found_task == SURVIVAL:
        need("sksurv", extra="slide", what="Survival")
    contenders = contenders_of(bags, compare)
    kept_out = None if test is None else test_contenders(bags, test, contenders)
    labels = {name: labels_of(bags.obs, name, found_task, event=event) for name in targets}
    plans = {name: _plan(bags, one, folds, seed) for name, one in labels.items()}
    fitter = _Fitter(contenders, chosen, aggregator, resolve_device(device), seed)
    rows = np.flatnonzero(np.any([one.known for one in labels.values()], axis=0))
    _refuse_twins(fitter.main, rows, None if kept_out is None else next(iter(kept_out.values())))
    total = len(contenders) * sum(len(plan) for plan in plans.values())
    with _logging.progress(None, "fitting slides", total=total, show=progress, unit="fold") as bar:
        fitted = {name: fitter.run(labels[name], plans[name], bar) for name in targets}
    rows = np.unique(np.concatenate([fit.outcome.rows for fit in fitted.values()]))
    spec = fitter.spec(labels, event, fitter.main, dim=fitter.main.dim(int(rows[0])))
    names = {target: list(fit.plan) for target, fit in fitted.items()}
    facts = {
        "task": spec.task,
        "targets": list(spec.targets),
        "classes": {target: list(classes) for target, classes in spec.classes.items()},
        "aggregator": spec.aggregator,
        "keys": list(fitter.stores),
        "embeddings": {name: embedding_of(bags) for name, bags in contenders.items()},
        "folds": next(iter(names.values())),
        "seed": seed,
        "n_bootstrap": n_bootstrap,
        "version": __version__,
    }
    evaluation = _evaluation([fit.outcome for fit in fitted.values()], facts, n_bootstrap, seed)
    tested = None
    if kept_out is not None:
        outcomes = [_tested(fit, kept_out, spec, event) for fit in fitted.values()]
        tested = _evaluation(outcomes, facts | {"folds": ["test"]}, n_bootstrap, seed)
    provenance = {
        "params": asdict(chosen),
        "slides": bags.obs.index[rows].astype(str).tolist(),
        "patients": sorted(bags.obs[Keys.PATIENT].iloc[rows].unique()),
        "folds": names,
        "epochs": {target: fit.epochs for target, fit in fitted.items()},
        "seed": seed,
    }
    members = {target: fit.nets[next(iter(fitter.stores))] for target, fit in fitted.items()}
    logger.info("Fitted %s of %s on %d slides", spec.task, listed(spec.targets), len(rows))
    return SlideModel(spec, members, evaluation, tested, provenance=provenance)


def _by_name(bags: Bags) -> Bags:
    """The bags, with what was written to their `obs` since they were made, in the order of the slides' names.

    Draws go by their order, and the one in which they are given says nothing.
    """
    return replace(bags).take(np.argsort(bags.obs.index.astype(str), kind="stable"))


def _refuse_twins(store: BagStore, rows: np.ndarray, test: Bags | None) -> None:
    """Refuse one slide under two names, of several patients or on both sides."""
    obs = [store.bags.obs] if test is None else [store.bags.obs, test.obs]
    stores = [store] if test is None else [store, BagStore(test, 0)]
    wanted = [rows] if test is None else [rows, np.arange(len(test))]
    for group in same_slides(stores, wanted):
        patients = {obs[i][Keys.PATIENT].iloc[row] for i, row in group}
        sides = {i for i, _ in group}
        if len(patients) > 1 or len(sides) > 1:
            where = "are in `bags` and in `test`" if len(sides) > 1 else f"are of patients {listed(sorted(patients))}"
            raise LeakError(
                f"Slides {listed(str(obs[i].index[row]) for i, row in group)} hold the same tiles, number by number, "
                f"but {where}. They are one slide; leave one out, or give them one patient."
            )


def _plan(bags: Bags, labels: Labels, folds: int | str, seed: int) -> dict[str, Fold]:
    """Folds of the slides that have the label, in rows of ``bags.obs``."""
    if bags.obs[Keys.PATIENT].isna().any():
        lacking = bags.obs.index[bags.obs[Keys.PATIENT].isna()]
        raise DataError(f"Slide(s) {listed(lacking)} have no patient; splits are by patient. Name it in `bags.obs`.")
    patients = bags.obs[Keys.PATIENT].to_numpy(dtype=object)
    rows = np.flatnonzero(labels.known)
    check_enough(labels, patients, int(folds) if isinstance(folds, int | np.integer) else 2)
    if isinstance(folds, str):
        check_key(bags.obs.columns, folds, where="`bags.obs`", hint="`folds` is a number or a column.")
        if bags.obs[folds].iloc[rows].isna().any():
            raise DataError(f"Column {folds!r} of folds has missing values; name the fold of every slide.")
        made = named_folds(patients[rows], bags.obs[folds].to_numpy()[rows])
    else:
        split = patient_folds(patients[rows], strata_of(labels.strata[rows], folds), folds, seed=seed)
        made = {str(i): sides for i, sides in enumerate(split)}
    plan = {name: (rows[train], rows[held]) for name, (train, held) in made.items()}
    for name, (train, held) in plan.items():
        check_sides(patients, train, held)
        strata = labels.strata[train]
        wanted = range(len(labels.classes)) if labels.classes else [1] if labels.task == SURVIVAL else []
        names = labels.classes or ("censored", "event")
        if lost := [names[i] for i in wanted if not (strata == i).any()]:
            raise DataError(
                f"Fold {name!r} would train without {listed(lost)} of {labels.target!r}. Ask for other `folds`, or "
                "merge classes."
            )
    return plan


@dataclass(frozen=True, eq=False)
class _Fit:
    """One target after cross-validation."""

    labels: Labels
    plan: dict[str, Fold]
    #: networks of the folds, by embedding
    nets: dict[str, list[SlideNet]]
    outcome: Outcome
    epochs: list[int]


class _Fitter:
    """Fits all folds of all embeddings, and keeps bags between them."""

    def __init__(
        self, contenders: Mapping[str, Bags], params: SlideParams, aggregator: str, device: torch.device, seed: int
    ) -> None:
        self.params, self.aggregator, self.device, self.seed = params, aggregator, device, seed
        budget = params.cache_mb / len(contenders)
        self.stores = {name: BagStore(bags, budget) for name, bags in contenders.items()}

    @property
    def main(self) -> BagStore:
        """Bags of the embedding that the model is for."""
        return next(iter(self.stores.values()))

    def spec(self, labels: Mapping[str, Labels], event: str | None, store: BagStore, *, dim: int) -> SlideSpec:
        """What a model of an embedding is."""
        params, first = self.params, next(iter(labels.values()))
        return SlideSpec(
            task=first.task,
            targets=tuple(labels),
            classes={name: one.classes for name, one in labels.items()} if first.classes else {},
            event=event,
            aggregator=self.aggregator,
            key=str(store.bags.key),
            embedding=embedding_of(store.bags),
            dim=dim,
            hidden=params.hidden,
            attention=params.attention,
            dropout=params.dropout,
        )

    def run(self, labels: Labels, plan: dict[str, Fold], bar: Any) -> _Fit:
        """Fit every fold on every embedding and predict the slides it holds out."""
        nets: dict[str, list[SlideNet]] = {}
        predicted: dict[str, np.ndarray] = {}
        epochs: list[int] = []
        held = np.concatenate([test for _, test in plan.values()])
        for name, store in self.stores.items():
            nets[name] = []
            values: list[np.ndarray] = []
            for fold, (train, test) in plan.items():
                net, n_epochs = self._fit(store, labels, fold, train)
                nets[name].append(net)
                epochs.append(n_epochs)
                values.append(predict_rows(net.predict, store, test))
                bar.update()
            predicted[name] = np.concatenate(values)
        outcome = Outcome(
            labels=labels,
            rows=held,
            obs=self.main.bags.obs,
            fold=np.repeat(np.array(list(plan), dtype=str), [len(test) for _, test in plan.values()]),
            predicted=predicted,
            floor=np.concatenate([floor_of(labels, train, len(test)) for train, test in plan.values()]),
            train={name: labels.values[train] for name, (train, _) in plan.items()},
        )
        return _Fit(labels, plan, nets, outcome, epochs)

    def _fit(self, store: BagStore, labels: Labels, fold: str, train: np.ndarray) -> tuple[SlideNet, int]:
        seed = mixed_seed(self.seed, labels.target, fold)
        # Those of the first embedding for all: other bags may name patients otherwise.
        patients = self.main.bags.obs[Keys.PATIENT].to_numpy(dtype=object)[train]
        split_seed = mixed_seed(seed, "inner") % 2**32
        learn, watch = inner_split(patients, strata_of(labels.strata[train]), seed=split_seed)
        check_sides(patients, learn, watch)
        if self.params.patience is None:
            learn, watch = np.arange(len(train)), np.arange(0)
        elif not len(watch):
            logger.info("%s, fold %s: too few patients to spare some for early stopping", labels.target, fold)
        job = Job(
            task=labels.task,
            store=store,
            learn=train[learn],
            watch=train[watch],
            labels=labels.values,
            n_classes=len(labels.classes),
            seed=seed,
        )
        with seeded(mixed_seed(seed, "weights") % 2**32):
            spec = self.spec({labels.target: labels}, None, store, dim=store.dim(int(train[0])))
            net = spec.build(labels.target).to(self.device)
        arrange = partial(slide_order, ordered=net.pool.ordered)
        return net, fit_net(net, job, self.params, arrange=arrange)


def predict_rows(predict: Any, store: BagStore, rows: np.ndarray) -> np.ndarray:
    """Predictions of slides: (n, classes), or (n,) where there is one number."""
    bags = (store[int(row)] for row in rows)
    values = np.stack([predict(bag.features, bag.xy).value for bag in bags])
    return values[:, 0] if values.shape[1] == 1 else values


def _evaluation(outcomes: Sequence[Outcome], facts: dict[str, Any], n_bootstrap: int, seed: int) -> SlideEvaluation:
    tables = [score_table(outcome, n_bootstrap=n_bootstrap, seed=seed) for outcome in outcomes]
    predictions = [prediction_table(outcome) for outcome in outcomes]
    table, held_out = (pd.concat(frames, ignore_index=True) for frames in (tables, predictions))
    return SlideEvaluation(table, held_out, facts=facts)


def _tested(fit: _Fit, kept_out: dict[str, Bags], spec: SlideSpec, event: str | None) -> Outcome:
    """The averaged networks on slides that were kept out."""
    first = next(iter(kept_out.values()))
    target = fit.labels.target
    for column in (target, *([event] if event else [])):
        check_key(first.obs.columns, column, where="`test.obs`", hint="Slides to test on need the label.")
    labels = labels_of(first.obs, target, spec.task, event=event, classes=fit.labels.classes or None)
    rows = np.flatnonzero(labels.known)
    if not len(rows):
        raise DataError(f"No slide of `test` has a label {target!r}.")
    predicted = {}
    for name, bags in kept_out.items():
        nets = fit.nets[name]
        predicted[name] = predict_rows(
            lambda x, xy, nets=nets: averaged([net.predict(x, xy) for net in nets]), BagStore(bags, 0), rows
        )
    known = np.flatnonzero(fit.labels.known)
    train = {"test": fit.labels.values[known]}
    fold, floor = np.full(len(rows), "test"), floor_of(fit.labels, known, len(rows))
    return Outcome(labels, rows, first.obs, fold, predicted=predicted, floor=floor, train=train)


def contenders_of(bags: Bags, compare: Sequence[str] | Mapping[str, Bags] | str | None) -> dict[str, Bags]:
    """Bags by the name of their embedding, the one to keep first.

    `compare` names further embeddings of the bags, or gives other bags of the same slides by name; None is the frozen
    encoder's where the bags have it.
    """
    found = {bags.key: bags}
    if compare is None:
        compare = [Keys.FROZEN] if Keys.FROZEN in bags.keys and bags.key != Keys.FROZEN else []
    if isinstance(compare, str):
        compare = [compare]
    named: dict[str, Any] = dict(compare) if isinstance(compare, Mapping) else dict.fromkeys(compare)
    for name, other in named.items():
        if name in (*found, FLOOR) or " - " in str(name):
            raise DataError(f"`compare` names {name!r}, which stands for something else; give it another name.")
        if other is None:
            check_key(bags.keys, name, where="the bags' embeddings", hint="Or pass `compare={'name': bags}`.")
            found[name] = bags.with_key(name)
        elif isinstance(other, Bags):
            if lost := [slide for slide in bags.obs.index if slide not in other.obs.index]:
                raise DataError(f"`compare[{name!r}]` lacks slide(s) {listed(lost)}; take the slides that both have.")
            # Patients and labels are those of the bags that are fitted, however the others state them.
            found[name] = replace(other.take(other.obs.index.get_indexer(bags.obs.index)), obs=bags.obs)
        else:
            raise TypeError(f"`compare[{name!r}]` must be Bags, found {type(other).__name__}.")
    return found


def test_contenders(bags: Bags, test: Bags, contenders: Mapping[str, Bags]) -> dict[str, Bags]:
    """The same embeddings of the slides that are kept out, after a check for leaks."""
    if not isinstance(test, Bags):
        raise TypeError(f"`test` must be Bags (`sl.io.read_bags`), found {type(test).__name__}.")
    test = _by_name(test)
    if both := sorted(set(bags.obs.index) & set(test.obs.index)):
        raise LeakError(f"Slide(s) {listed(both)} are in `bags` and in `test`.")
    patients = (set(b.obs[Keys.PATIENT].dropna()) for b in (bags, test))
    if both := sorted(set.intersection(*patients)):
        raise LeakError(f"Patient(s) {listed(both)} have slides in `bags` and in `test`; a patient is on one side.")
    found = {}
    for name, other in contenders.items():
        if other.facts is not bags.facts:
            raise DataError(
                f"`compare[{name!r}]` is given as bags of its own, which say nothing about the slides of `test`. "
                "Leave `test` out, or read both embeddings into one `Bags` and name them."
            )
        check_key(test.keys, other.key, where="the embeddings of `test`", hint="Embed those slides with it too.")
        found[name] = test.with_key(other.key)
        check_same_embedding(embedding_of(other), found[name])
    return found


def embedding_of(bags: Bags) -> str | None:
    """Fingerprint or name of the model behind the bags' embedding; None where it is not known."""
    name = dict(bags.facts.get("models", {})).get(bags.key)
    return None if name is None else str(name)


def check_same_embedding(expected: str | None, bags: Bags) -> None:
    """Raise when embeddings were made by another model than expected; where either is unknown nothing is said."""
    found = embedding_of(bags)
    if expected is not None and found is not None and expected != found:
        raise DataError(
            f"Embeddings {bags.key!r} were made by model {found!r}, but the slide model was fitted on those of "
            f"{expected!r}. Embed the slides with that model, or fit again."
        )
