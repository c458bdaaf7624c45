"""The comparison that is always printed: frozen encoder, adapted encoder, direct head, baselines, floors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeAlias

import anndata
import numpy as np
import pandas as pd
from spatialdata import SpatialData

from sealst import _section
from sealst._core.device import resolve_device
from sealst._core.genes.panel import GenePanel
from sealst._core.scores.probes import Protocol, resolve_protocol
from sealst._core.space.views import N_SYMMETRIES
from sealst._data.arena import Arena
from sealst._docs import documented
from sealst._errors import DataError
from sealst._evaluation import Evaluation
from sealst._keys import Keys
from sealst._logging import logger
from sealst._session_info import session_info
from sealst._settings import resolve_seed, settings
from sealst._validate import check_count, check_positive
from sealst._version import __version__
from sealst.io import HestBench
from sealst.models import Encoder, SealModel
from sealst.pp import Split
from sealst.tl._evaluate import scored_genes as scored
from sealst.tl._evaluate.candidates import Candidate, candidate_of
from sealst.tl._evaluate.changes import Changes, columns_of
from sealst.tl._evaluate.cohorts import Cohort, cohort_of
from sealst.tl._evaluate.curve import TrainPart, counted, curve_rows, fractions_of, joined, learned
from sealst.tl._evaluate.folds import check_units
from sealst.tl._evaluate.methods import predictions
from sealst.tl._evaluate.pathway_rows import Activities
from sealst.tl._evaluate.score_rows import FoldScorer, Results
from sealst.tl._evaluate.views import ROOM, SEAL, SectionReader, SectionView, TrunkMemory
from sealst.tl._pathways.pathways import Net, gene_set_edges

#: reader of a fold's sections, and by fold the columns of its sets of genes
_Ready: TypeAlias = tuple[SectionReader, dict[str, dict[str, np.ndarray]]]


@documented
def evaluate(
    sections: SpatialData | Sequence[SpatialData] | HestBench,
    model: SealModel | Encoder | str | Mapping[str, Any],
    *,
    test: SpatialData | Sequence[SpatialData] | None = None,
    preset: str | Protocol = "cv",
    folds: str | Sequence[Split] = "patient",
    genes: Mapping[str, Sequence[str]] | None = None,
    n_genes: int | None = None,
    baselines: Sequence[str] = (),
    net: Net | None = None,
    seeds: Sequence[int] | None = None,
    near_um: float | None = None,
    labels: Sequence[str] = (),
    confounder: str = Keys.PATIENT,
    control: bool = False,
    train_fractions: Sequence[float] | None = None,
    n_draws: int = 3,
    allow_shared_patients: bool = False,
    device: str | None = None,
    table_key: str = Keys.TABLE,
    progress: bool | None = None,
    seed: int | None = None,
) -> Evaluation:
    """Compare encoders by what they tell about held-out tissue: adapted, frozen, baselines, floors.

    Probes are fitted on training spots and scored on held-out ones. Nothing is chosen on test data, except in the
    preset ``"hest"``, which repeats HEST-bench with its choices.

    Parameters
    ----------
    sections
        With `test`, the sections to fit on. Alone, all sections, of which `folds` makes folds. SpatialData after
        `sealst.pp.pair_crops` and `sealst.pp.normalize`, a `sealst.io.Collection`, or a task of HEST-bench
        (`sealst.io.read_hest_bench`).
    model
        What is evaluated:

        - a SEAL model; refused on patients that it was trained on
        - a mapping with the arguments of `sealst.tl.finetune` (``{"encoder": "uni2-h", "params": {...}}``): every fold
          trains its own model on its training sections. With ``params["patience"]`` it holds out about a fifth of their
          spots to stop by: whole patients, or whole sections where one patient is left to train on
        - an encoder (`sealst.models.build_encoder`) or its name: the frozen encoder alone
    test
        Held-out sections.
    preset
        ``"cv"``: ridge regression within sections on standardised features (means over eight flips and rotations of a
        crop), its penalty by inner cross-validation over patients, genes chosen on the training sections, targets
        log1p-CP10k. ``"plain"``: the same on the crop as it is, fitted across sections. ``"hest"``: HEST-bench (256
        principal components, ridge without intercept of penalty 100 / features / genes, 50 variable genes of all
        sections, targets log1p of raw counts). Or a `sealst.tl.Protocol` of your own.
    folds
        ``"patient"``, ``"section"``, ``"block"`` or a column of ``.obs`` (``"organ"``, ``"technology"``, …), see
        `sealst.pp.split`; or what it returned. Not used with `test`.
    genes
        Named sets of genes to score. Default: the `n_genes` most variable (``"hvg50"``) and most expressed
        (``"heg50"``) of the training sections, of the model's panel where there is one.
    n_genes
        Size of the default sets; default the preset's (50).
    baselines
        Trained beside SEAL in every fold, with the same encoder, adapter, crops and panel; need a mapping as `model`:
        ``"st-net"`` (regression of expression by finetuning, after He et al. 2020) and ``"bleep"`` (contrastive
        learning alone with soft targets, prediction by the 50 nearest profiles, after Xie et al. 2023).
    net
        Gene sets, as for `sealst.tl.pathways`: agreement of their activity in predicted and measured expression.
    seeds
        Seeds of the models that are trained; each gives rows of its own. Default: ``settings.seed`` alone.
    near_um
        Distance in µm within which another spot counts as found too; adds metrics ``"near R@k"``.
    labels
        Columns of ``.obs`` (``"region"``, ``"stain"``, ``"patient"``, …) that are told from embeddings, frozen and
        adapted, to see what else an alignment changed; adds metrics ``"label_accuracy"`` and ``"robustness_index"``.
        Spots without a value are left out.
    confounder
        Column of ``.obs`` that should not decide which spots are neighbours: ``"patient"``, ``"section"``, a centre;
        for ``"robustness_index"``.
    control
        Whether to fit one more probe, ``"permuted + ridge"``, to training spots that got each other's expression within
        their section. It must score around 0 in every section; if it does not, the numbers beside it mean nothing.
    train_fractions
        Shares of the training side of every fold to learn from, such as ``[0.25, 0.5, 1]``: would more data help? The
        recipe is trained on each part, and the probe of the frozen encoder fitted on it. Whole patients leave first,
        until one is left, then its sections, then spots, from one side of the section. All of the training side counts
        as well, whether 1 is named or not, and is trained once. For a recipe or a frozen encoder.
    n_draws
        With `train_fractions`: different parts of each size that are drawn, where there are as many.
    allow_shared_patients
        Whether a patient (or copied spots) may stand on both sides, for in-sample checks; refused otherwise.
    device
        Where an encoder runs that is not part of a model; default ``settings.device``.
    %(table_key)s
    %(progress)s
    seed
        Seed of the bootstrap intervals, and of the permutation; default ``settings.seed``.

    Returns
    -------
    `Evaluation` with tidy frames ``.table``, ``.genes``, ``.pathways``, ``.curve`` (with `train_fractions`) and maps in
    ``.spots``. Methods: ``"frozen +
    ridge"``, ``"adapted + ridge"``, ``"seal prediction"`` (what `sealst.tl.predict` writes, where the model has a
    readout beside its head), ``"seal head"`` (the network trained with the encoder), ``"seal retrieval"`` (mean of the
    50 training spots whose expression is nearest to the image), the baselines, and the floors ``"colour + ridge"``
    (mean and deviation of the crop's colour) and ``"mean"``. Metrics, per section and gene set:

    - ``"pearson"``, ``"spearman"``, ``"r2"``: mean over genes; also over all test spots of a fold together (rows with
      section ``""``)
    - ``"spot_pearson"``, ``"spot_spearman"``, ``"spot_r2"``: mean over spots of the same over genes, of deviations from
      the training mean in training deviations
    - ``"calibration_slope"``: median over genes of the slope of measured on predicted; 1 is calibrated
    - ``"moran_agreement"``: correlation over genes of Moran's I of predicted and measured maps; ``"residual_moran"``:
      mean Moran's I of what is left over
    - ``"pearson_difference"``: difference to ``"frozen + ridge"``, paired by gene and section, with interval; with fold
      ``""`` over all folds
    - ``"coverage"``, ``"width"``: how often intervals of the model that are to hold 90 % of spots hold what was
      measured, and their width in log1p-CP10k, of what `sealst.tl.predict` writes; where the model has intervals
      (``crossfit=`` of `sealst.tl.finetune`) and crops are seen in eight views
    - ``"section_pearson"``, ``"section_spearman"``, ``"section_r2"``: the same over the test sections of a fold, of
      their mean expression, from three on
    - ``"R@1"``, ``"R@5"``, ``"R@10"``, ``"R@50"``, ``"median_rank"``: image → expression among the spots of the section
      (with section ``""``: of all test sections), and ``"gene→image R@1"``, …; ``"seal prediction"`` by expression, as
      `sealst.tl.retrieve` compares unless told otherwise, ``"adapted"`` and ``"frozen"`` by cosine with the gene
      embedding, ``"frozen + ridge"`` by cosine of the predicted with the measured profile.
      ``"image→image R@1"``, …: by the same image side, of the other spot whose measured profile is most similar
    - ``"neighbours_kept"``: share of a spot's 10 nearest neighbours in its section by the frozen encoder that are so by
      the adapted one
    - ``"label_accuracy"``: balanced accuracy of a logistic regression, fitted on training spots, by column (named
      under ``"genes"``); of a column with one value per section, such as the patient, on spots left out in five folds
    - ``"robustness_index over <confounder>"``: of neighbours that share either the label or the confounder, the share
      that share the label (Kömen et al. 2025); above 0.5 biology decides more often

    Raises
    ------
    LeakError
        When a patient stands on both sides, the model was trained on a patient of the test sections, or test spots are
        copies of training spots.
    PanelError
        When a gene is not in the model's panel, or the panel's genes have no names.
    DataError
        When sections were normalised with different `target_sum`.

    Notes
    -----
    Intervals are over genes (for gains over genes and sections), not over patients: with few patients they say nothing
    about the next one.

    What outgrows 2 GiB of memory lies in files below ``settings.cache_dir`` while the call lasts. Of more than 50,000
    training spots in a fold probes are fitted on 50,000, spread over all sections, and of more than 20,000 spots in a
    section 20,000 are searched.

    Examples
    --------
    >>> found = sl.tl.evaluate([s1, s2], model, test=s3)  # doctest: +SKIP
    >>> recipe = {"encoder": "uni2-h"}  # doctest: +SKIP
    >>> found = sl.tl.evaluate(sections, recipe, baselines=["st-net", "bleep"])  # doctest: +SKIP
    >>> found.table.query("metric == 'pearson' and section != ''")  # doctest: +SKIP
    """
    if isinstance(model, SealModel):
        model.panel.require_names()
    protocol = resolve_protocol(preset)
    if n_genes is not None:
        check_count("n_genes", n_genes)
        protocol = replace(protocol, n_genes=int(n_genes))
    if near_um is not None:
        check_positive("near_um", near_um)
        if isinstance(sections, HestBench):
            raise DataError("`near_um` needs positions in µm; the files of HEST-bench have pixels of unknown size.")
    fractions = fractions_of(train_fractions, n_draws, resolve_seed(seed))
    seed, seeds = resolve_seed(seed), (settings.seed,) if seeds is None else seeds
    if isinstance(seeds, int) or not len(seeds):
        raise DataError(f"`seeds` must be a list of one or more whole numbers, found {seeds!r}.")
    cohort, made = cohort_of(sections, test, folds, allow_shared_patients, table_key)
    if protocol.target == "lognorm":
        check_units(cohort.parts(), made)
    candidate = candidate_of(
        model, cohort, baselines=baselines, device=resolve_device(device), table_key=table_key, show=progress
    )
    if not allow_shared_patients:
        candidate.check_leaks(cohort, made)
        if isinstance(sections, HestBench) or folds == "block" or not isinstance(folds, str):
            # Other folds are `sl.pp.split`'s, which has looked.
            _section.refuse_twin_folds(cohort.parts(), made)
    # Before the first fold is trained: the last one may leave nothing to stop by.
    candidate.check_folds(made)
    stopped = candidate.stopped_by(made)
    if fractions.shares:
        candidate.check_parts()
    parts = fractions.plan(cohort, made)
    candidate.stopped_by([part.fold for some in parts.values() for part in some])
    # A resource is fetched once.
    activities = Activities(None if net is None else gene_set_edges(net))
    changes = Changes(columns_of(labels, confounder, cohort.parts()), confounder)
    job = _Job(
        cohort, candidate, protocol, genes, activities, table_key, progress, seed, near_um, control, changes,
        scratch=settings.cache_dir,
    )  # fmt: skip
    results = job.run(made, [int(s) for s in seeds] if candidate.trains else [0], parts)
    facts: dict[str, Any] = {"preset": protocol.name, "sealst": __version__, "folds": [fold.name for fold in made]}
    facts |= {"seeds": list(map(int, seeds)) if candidate.trains else [], "encoder": candidate.label}
    facts["base"] = candidate.base
    if stopped:
        facts["stopped_by"] = stopped
    if fractions.shares:
        facts |= {"train_fractions": [*fractions.shares, 1.0], "n_draws": fractions.n_draws}
    facts |= {"views": protocol.views, "models": results.models}
    facts["versions"] = dict(session_info())
    return Evaluation(
        table=pd.DataFrame(results.table),
        genes=pd.concat(results.genes, ignore_index=True) if results.genes else pd.DataFrame(),
        pathways=pd.concat(results.pathways, ignore_index=True) if results.pathways else pd.DataFrame(),
        spots={name: anndata.concat(parts, join="inner") for name, parts in results.spots.items()},
        facts=facts,
        curve=joined(results.curve),
    )


@dataclass(frozen=True)
class _Job:
    """All folds of an evaluation, and what is kept between them."""

    cohort: Cohort
    candidate: Candidate
    protocol: Protocol
    given: Mapping[str, Sequence[str]] | None
    activities: Activities
    table_key: str
    show: bool | None
    seed: int
    near_um: float | None
    control: bool
    changes: Changes
    #: folder of what does not fit into memory
    scratch: Path

    @cached_property
    def n_spots(self) -> int:
        """Spots of all sections."""
        return sum(len(part.obs_names) for part in self.cohort.parts())

    def run(self, folds: Sequence[Split], seeds: Sequence[int], parts: Mapping[str, Sequence[TrainPart]]) -> Results:
        """Score every fold with every seed, and after learning from parts of its training side."""
        results = Results()
        shared: dict[str, SectionView] = {}
        # Models that are trained choose their own panel; otherwise one set of genes serves all folds.
        # Then sections are seen in several folds, and by several models; else once.
        memory = TrunkMemory() if self.candidate.trains else None
        common = None if self.candidate.trains else self._prepared(folds, self.candidate.models(folds[0], 0), memory)
        for fold in folds:
            for seed in seeds:
                logger.info("fold %s%s", fold.name, f", seed {seed}" if self.candidate.trains else "")
                before = len(results.table)
                ready = common or self._prepared([fold], self.candidate.models(fold, seed), memory)
                n = self._score(fold, seed, ready, shared, results)
                if some := parts.get(fold.name):
                    named = {"fold": fold.name, "seed": seed}
                    results.curve.append(curve_rows(results.table[before:], n, fraction=1.0, draw=0, **named))
                    of_one = partial(self._of_part, fold, seed, ready, shared, memory)
                    results.curve += learned(some, of_one, **named)
        results.add_overall(self.seed)
        return results

    def _of_part(
        self,
        fold: Split,
        seed: int,
        whole: _Ready,
        shared: dict[str, SectionView],
        memory: TrunkMemory | None,
        part: TrainPart,
    ) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """Rows after learning from a part of a fold's training side, and how much that was; of the fold's genes."""
        reader, sets = whole
        ready, out = (reader, {part.fold.name: sets[fold.name]}), Results()
        if self.candidate.trains:
            logger.info("fold %s", part.fold.name)
            models = self.candidate.models(part.fold, seed, panel=reader.models[SEAL].panel)
            names = reader.genes.genes
            scored_here = {name: [names[i] for i in columns] for name, columns in sets[fold.name].items()}
            ready = self._prepared([part.fold], models, memory, {part.fold.name: scored_here})
        # A curve is of the encoder and its readouts: what else is measured of all of the training side is not repeated.
        plain = replace(self, activities=Activities(), changes=Changes(), control=False)
        return out.table, plain._score(part.fold, seed, ready, shared, out)

    def _prepared(
        self,
        folds: Sequence[Split],
        models: Mapping[str, SealModel],
        memory: TrunkMemory | None,
        sets: Mapping[str, scored.Sets] | None = None,
    ) -> _Ready:
        """What folds need before their sections are looked at: a reader, and the columns of their sets of genes."""
        panel = models[SEAL].panel if models else None
        sets = sets or {fold.name: self._sets(fold, panel) for fold in folds}
        extra = [] if panel is not None else self.activities.genes(self.cohort.parts())
        genes = scored.universe(list(sets.values()), panel, self.protocol, extra)
        reader = SectionReader(
            extract=self.candidate.extractor(models, memory, self.protocol.views),
            models=models,
            genes=genes,
            target=self.protocol.target,
            crop=self.candidate.crop,
            wider=self.candidate.wider,
            labels=[*self.changes.labels, self.changes.confounder] if self.changes.labels else [],
            table_key=self.table_key,
            show=self.show,
        )
        return reader, {name: scored.columns_of(part, genes) for name, part in sets.items()}

    def _sets(self, fold: Split, panel: GenePanel | None) -> scored.Sets:
        within = panel if self.protocol.target == "lognorm" else None
        if self.given is not None:
            return scored.given_sets(self.given, within)
        if self.protocol.genes == "train":
            return scored.ranked_sets(self.cohort.train_side(fold), self.protocol.n_genes, within, self.table_key)
        found = self.cohort.hest_genes(self.protocol.n_genes, within)
        return {f"hest{len(found)}": found}

    def _kept(self, view: SectionView, arena: Arena) -> SectionView:
        """A view, in files where those of all spots would not fit into memory."""
        large = view.nbytes / max(1, len(view)) * self.n_spots > ROOM
        return view.kept_in(arena) if large else view

    def _taken(self, view: SectionView, spots: np.ndarray, arena: Arena) -> SectionView:
        some = view.take(spots)
        # Of a section that is taken whole nothing was copied.
        return some if some is view else self._kept(some, arena)

    def _score(
        self, fold: Split, seed: int, ready: _Ready, shared: dict[str, SectionView], results: Results
    ) -> dict[str, int]:
        """Append the scores of one fold; returns how much was learned from."""
        (reader, all_sets), wanted = ready, {*fold.train, *fold.test}
        views, arena = dict(shared), Arena(self.scratch)
        for view in self.cohort.views(reader, wanted - set(shared)):
            views[view.name] = self._kept(view, arena)
        if not self.candidate.trains:
            shared.update(views)
        seen, held = (
            [self._taken(views[name], spots, arena) for name, spots in side.items()] for side in (fold.train, fold.test)
        )
        for side, sections in (("training", seen), ("test", held)):
            for view in sections:
                if len(view) < 2:
                    raise DataError(
                        f"Fold {fold.name!r}: section {view.name!r} has {len(view)} {side} spot(s) with a usable crop; "
                        "at least 2 are needed. See `.obs['crop_reason']`."
                    )
        sets, models, genes = all_sets[fold.name], reader.models, reader.genes
        columns = np.unique(np.concatenate(list(sets.values())))
        control = self.seed if self.control else None
        if models and fold.name not in results.models:
            results.models[fold.name] = models[SEAL].origin
        logger.info(
            "fold %s: fitting probes on %d spots, predicting %d", fold.name, sum(map(len, seen)), sum(map(len, held))
        )
        # Some ten methods.
        large = 40 * len(genes) * sum(map(len, held)) > ROOM
        predicted = predictions(
            seen, held, self.protocol, models=models, genes=genes, scored=columns, control=control,
            arena=Arena(self.scratch) if large else None,
        )  # fmt: skip
        # Mean and deviation of every gene over the training spots that measure it.
        n = np.sum([len(v) * v.known for v in seen], axis=0).clip(min=1)
        centre = np.sum([v.measured.sum(axis=0, dtype=np.float64) * v.known for v in seen], axis=0) / n
        squares = np.sum([((v.measured - centre) ** 2).sum(axis=0) * v.known for v in seen], axis=0)
        scorer = FoldScorer(
            fold=fold.name,
            seed=seed,
            genes=genes,
            sets=sets,
            centre=centre,
            scale=np.sqrt(squares / n),
            bootstrap_seed=self.seed,
            near_um=self.near_um,
        )
        logger.info("fold %s: scoring %d genes in %d section(s)", fold.name, len(genes), len(held))
        scorer.add(held, predicted, results)
        scorer.add_retrieval(held, predicted, models, results)
        if self.protocol.target == "lognorm" and self.protocol.views == N_SYMMETRIES:
            # Of other views intervals were not measured.
            scorer.add_intervals(held, predicted, models, results)
        scorer.add_changes(seen, held, self.changes, results)
        results.pathways += self.activities.rows(held, predicted, genes, fold=fold.name, seed=seed, models=models)
        return counted(seen)
