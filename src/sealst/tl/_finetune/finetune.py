"""Train a SEAL model: the whole of it, in one call."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from spatialdata import SpatialData

from sealst import _section
from sealst._core.device import processes, resolve_device
from sealst._core.genes.panel import GenePanel
from sealst._core.losses.domain import balanced_weights
from sealst._core.seeds import seeded
from sealst._data.dataset import PairDataset, joined_expression
from sealst._docs import documented
from sealst._errors import DataError, PanelError
from sealst._files import as_path
from sealst._keys import Keys
from sealst._logging import logger, warn
from sealst._settings import resolve_seed, settings
from sealst._train.engine import RESERVED, Run, run_stages
from sealst._train.inputs import CropSet, image_inputs
from sealst._train.module import frozen_baseline
from sealst._train.params import TrainParams, choose, train_params
from sealst._validate import check_choice, listed, positive_numbers
from sealst._version import __version__
from sealst.models import CropSpec, Encoder, GeneEncoderParams, ProjectionParams, SealModel, build_encoder, load
from sealst.models._adapters import Adapter, counts_blocks, resolve_adapter
from sealst.models._genes import resolve_gene_encoder
from sealst.models._seal.heads import resolve_projection
from sealst.pp import check_split, select_genes
from sealst.tl._embed.inputs import as_sections, in_order_of
from sealst.tl._finetune.crossfit import CHOICES, crossfitted, planned
from sealst.tl._finetune.pairs import (
    Pairs,
    crop_digests,
    extras_of,
    gather_pairs,
    more_expression,
    organs_of,
    warmup_patients,
)
from sealst.tl._finetune.readout import fitted_novelty, fitted_readouts, seen_spots
from sealst.tl._finetune.run_folder import (
    FOLDS,
    MODEL,
    begin,
    facts_of,
    finish,
    open_run,
    rounding_of,
    scratch_prefix,
)
from sealst.tl._pathways.pathways import Net, gene_set_edges

#: objects in `trainer_kwargs` that belong to one training, so that folds do without
_OF_ONE_RUN = ("logger", "callbacks")
#: fewer spots than this cannot be split into batches
MIN_SPOTS = 16


@documented
def finetune(
    sections: SpatialData | Sequence[SpatialData],
    *,
    encoder: str,
    pretrained: bool = True,
    pool: str | None = None,
    panel: GenePanel | None = None,
    n_genes: int = 2000,
    include: Sequence[str] = (),
    crop_um: float | Sequence[float] | None = None,
    validation: SpatialData | Sequence[SpatialData] | None = None,
    allow_shared_patients: bool = False,
    adapter: Adapter | Mapping[str, Any] | str = "lora",
    gene_encoder: GeneEncoderParams | Mapping[str, Any] | str = "vae",
    projection: ProjectionParams | Mapping[str, Any] | str = "none",
    readout: str = "auto",
    crossfit: str | None = None,
    net: Net | None = None,
    params: TrainParams | Mapping[str, Any] | str | Path | None = None,
    warmup: AnnData | Sequence[AnnData] | None = None,
    run_dir: str | Path | None = None,
    resume: bool = False,
    seed: int | None = None,
    device: str | None = None,
    progress: bool | None = None,
    table_key: str = Keys.TABLE,
    trainer_kwargs: Mapping[str, Any] | None = None,
) -> SealModel:
    """Align an image encoder with gene expression (SEAL).

    Adapters in the encoder's last blocks, a gene autoencoder and an expression head are trained together: a contrastive
    loss brings crop and expression of a spot close to each other, and expression is reconstructed from both. With LoRA,
    the default, the encoder's own weights stay as they are. Whatever is not given in `params` and `adapter` is chosen
    from the number of spots and printed with its reason.

    Parameters
    ----------
    sections
        Training sections, after `sealst.pp.pair_crops` and `sealst.pp.normalize`; or a `sealst.io.Collection`, of
        which one section at a time is open.
    encoder
        Key of `sealst.models.list_encoders`, name of a timm vision transformer or ``"local-dir:<folder>"``, see
        `sealst.models.build_encoder`.
    pretrained
        False trains on random weights: for tests and demonstrations only.
    pool
        How tokens become one vector, see `sealst.models.build_encoder`; default the encoder's own way.
    panel
        Genes of the model, see `sealst.pp.select_genes`; default the `n_genes` most variable of the sections. Spots
        do not count in the reconstruction of genes that their section does not measure.
    n_genes
        Size of the default panel.
    include
        Genes that are in the default panel whatever their rank, such as ``["ERBB2", "ESR1"]``; they count among the
        `n_genes`.
    crop_um
        Which of the paired crop sizes to train on, in µm; default the first. Of several, such as ``[112, 224, 448]``,
        the encoder is aligned on the first, and a further readout (``"fields"``) sees all of them, as squares about the
        same centre; the others need not have been paired. It takes a pass of the encoder for each of them, when it is
        fitted and when it predicts.
    validation
        Held-out sections, scored after every epoch (gene Pearson, recall); never trained on.
    allow_shared_patients
        Whether training and validation may share a patient; refused otherwise.
    adapter
        What of the encoder is trained: ``"lora"`` (low-rank layers in the last blocks), ``"blocks"`` (the last blocks'
        own weights), ``"full"``, ``"bottleneck"`` (a small network behind the frozen encoder) or ``"none"``; with
        settings as `sealst.models.LoraParams`, `BlocksParams`, `FullParams`, `BottleneckParams`, or a mapping such as
        ``{"kind": "lora", "r": 16, "dora": True}``.
    gene_encoder
        The network that embeds expression: ``"vae"`` (variational autoencoder with planar flows), ``"mlp"`` (plain
        autoencoder), ``"mae"`` (masked autoencoder) or ``"transformer"`` (genes as tokens); with settings as
        `sealst.models.GeneVAEParams`, `GeneMLPParams`, `GeneMAEParams`, `GeneTransformerParams`, or a mapping such as
        ``{"kind": "mlp", "hidden": (512,)}``.
    projection
        Heads between embeddings and the contrastive loss: ``"none"``, ``"linear"`` or ``"mlp"``; with settings as
        `sealst.models.ProjectionParams` or a mapping such as ``{"kind": "mlp", "dim": 256}``.
    readout
        What predicts expression from the embeddings in the end. ``"auto"``: linear readouts are fitted behind the
        trained encoder, of the crop alone (``"ridge"``), of the crop beside the mean embedding of what lies around it
        (``"surroundings"``) and, with several sizes in `crop_um`, of all these fields of view beside it
        (``"fields"``). The one that predicts held-out training patients best (sections where there is one patient,
        strips where there is one section) is what `sealst.tl.predict` uses; see ``model.readouts`` and
        ``model.readout.facts["scores"]``. ``"head"``: the network that is trained with the encoder, and nothing else.
    crossfit
        What is held out to learn which genes can be believed: ``"patient"``, or ``"section"`` where there is one
        patient. Beside the model that is returned, which learns from everything, one is trained for every patient
        without that patient (five with a fifth of the patients each, where there are more than five), with the same
        settings and cached tokens. What `sealst.tl.predict` writes for the held-out sections is compared with what was
        measured and kept as ``model.reliability``, see `sealst.models.Reliability`, and with three patients or more
        as ``model.intervals``, for ``intervals=`` of `sealst.tl.predict`. By default nothing is held out, and the model
        says that its reliability is unknown.
    net
        With `crossfit`: gene sets, as for `sealst.tl.pathways`, whose activity is scored on held-out sections too.
    params
        `TrainParams`, a mapping of its fields such as ``{"epochs": 5, "lr": 1e-3}``, or a YAML file with them.
    warmup
        Expression without images (AnnData after `sealst.pp.normalize`) that the warm-up of the gene autoencoder sees
        beside the sections' own; needs ``params.warmup_epochs``. Its ``context`` layer is used where the training uses
        it and it has one, else ``lognorm``.
    run_dir
        Folder for ``run.json`` (what was asked, versions), ``metrics.csv``, event files in ``tensorboard/`` (where
        TensorBoard is installed), a checkpoint while training runs, ``training.png`` and ``model/``; with `crossfit`
        ``folds/``, a run of its own for each. By default nothing is written.
    resume
        Whether to go on with the run that `run_dir` holds: from its last checkpoint (to the same weights as without the
        interruption, on the same kind of machine), or by returning its model where it is finished. Without an earlier
        run it starts one, so a pipeline may always say so. Another run in the folder is refused.
    seed
        Seed of everything random; default ``settings.seed``.
    %(device)s
    %(progress)s
    %(table_key)s
    trainer_kwargs
        Passed on to `lightning.Trainer`: ``{"devices": 4, "strategy": "ddp"}``, ``{"num_nodes": 2}``, a ``logger``, …

    Returns
    -------
    The trained model in evaluation mode, with ``model.history`` (one row per epoch) and, with `crossfit`,
    ``model.reliability`` and ``model.intervals``.

    Raises
    ------
    OrderError
        When crops or layers are missing.
    LeakError
        When a patient is in training and validation; with `crossfit`, also when one is in `warmup` (but for
        ``allow_shared_patients=True``).
    WeightsError
        When the encoder's weights cannot be had; random weights are never used silently.

    References
    ----------
    Hemker et al., *Towards Spatial Transcriptomics-driven Pathology Foundation Models*, arXiv 2602.14177 (2026).

    Examples
    --------
    >>> model = sl.tl.finetune([s1, s2], encoder="local-dir:weights/vit_small", pool="cls+mean")  # doctest: +SKIP
    """
    check_choice("readout", readout, ("auto", "head"))
    if crossfit is not None:
        check_choice("crossfit", crossfit, CHOICES)
    elif net is not None:
        raise DataError("`net` is scored on what `crossfit` holds out; say `crossfit='patient'`, or leave `net` out.")
    train = as_sections(sections, "sections")
    held: Sequence[SpatialData] = [] if validation is None else as_sections(validation, "validation")
    if held and not allow_shared_patients:
        check_split(train, held, table_key=table_key)
    parts: Any = {"gene_encoder": resolve_gene_encoder(gene_encoder), "projection": resolve_projection(projection)}
    params = _suiting(train_params(params), parts["gene_encoder"])
    options = dict(trainer_kwargs or {})
    _check_options(params, warmup, held, options, nowhere=resume and run_dir is None, panel=panel, include=include)
    first, wider = fields_of_view(crop_um, readout)
    spec, train, held = _looked_through(train, held, first, table_key)
    where = resolve_device(device, options.get("devices", 1))
    seed = resolve_seed(seed)
    world, rank = processes(options.get("devices", 1), options.get("num_nodes", 1), where.type)
    plan = None
    if crossfit is not None:
        if world > 1:
            raise DataError(
                f"`crossfit` trains one model after the other in one process, but `trainer_kwargs` ask for {world}. "
                "Train on one device, or measure the reliability afterwards: `model.rely_on(evaluation)`."
            )
        known: dict[str, Any] = {
            "warmup_patients": warmup_patients(warmup),
            "allow_shared_patients": allow_shared_patients,
        }
        known["stopping_patients"] = _patients(held, table_key) if params.patience is not None else set()
        edges = None if net is None else gene_set_edges(net)
        plan = planned(train, crossfit, net=edges, table_key=table_key, **known)
    with ExitStack() as stack:
        folder = None
        if run_dir is not None:
            folder = stack.enter_context(open_run(as_path(run_dir, argument="run_dir"), resume=resume, rank=rank))
        base = build_encoder(encoder, pretrained=pretrained, pool=pool, seed=seed)
        if not pretrained:
            warn(f"{encoder!r} starts from random weights, as asked: for tests and demonstrations only.")
        given = panel
        if panel is None:
            panel = select_genes(train, n_genes, include=include, layer=params.layer, table_key=table_key)
        # For what does not fit into memory (crops, expression); removed after training.
        parent = settings.cache_dir if folder is None else folder
        parent.mkdir(parents=True, exist_ok=True)
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=scratch_prefix(rank), dir=parent)))
        pairs, others = _gathered(train, held, panel, spec, wider=wider, table_key=table_key, work=work)
        n_patients = len(set(pairs.labels["patient"]))
        params, adapter = _recipe(params, adapter, len(pairs), n_patients, base)
        provenance = _provenance(train, held, warmup, pairs, params, seed=seed, table_key=table_key)
        stack.enter_context(seeded(seed))
        model = SealModel(base, panel, crop=spec, adapter=adapter, organs=organs_of(pairs, params), **parts).to(where)
        extra = more_expression(warmup, panel, params)
        state = None
        if folder is not None:
            asked: dict[str, Any] = {"seed": seed, "readout": readout, "fields": wider, "provenance": provenance}
            asked["expression"] = [part.expression for part in (pairs, others, extra) if part is not None]
            both = [part for part in (pairs, others) if part is not None]
            facts = facts_of(model, params, crops=crop_digests(both, spec.crop_px, show=progress), **asked)
            facts |= {} if crossfit is None else {"crossfit": crossfit}
            state = begin(folder, facts, rounding=rounding_of(params, where, world=world), first=rank == 0)
            if (folder / MODEL / "config.json").is_file():
                logger.info("the run in %s is finished; its model is returned", folder)
                return load(folder / MODEL, device=device)
        # What lies on disk decides between the ways to read crops; the choice of the first start stands.
        params = params if state is None else replace(params, cache=state["cache"])
        run = Run(seed=seed, folder=folder, state=state, trainer_kwargs=options, show=progress)
        _train(model, params, pairs, others, run, extra=extra, readout=readout, stack=stack)
        model.provenance = provenance
        if plan is not None:
            again: dict[str, Any] = {"encoder": encoder, "pretrained": pretrained, "pool": pool, "adapter": adapter}
            again |= parts | {"crop_um": [spec.crop_um, *wider], "params": params, "readout": readout, "seed": seed}
            again |= {"warmup": warmup, "allow_shared_patients": allow_shared_patients, "table_key": table_key}
            again |= {"validation": held if params.patience is not None else None, "progress": progress}
            again |= {"trainer_kwargs": {k: v for k, v in options.items() if k not in _OF_ONE_RUN}, "device": device}
            train_fold = partial(_fold, folder, again)
            found = crossfitted(model, plan, train_fold, refit=given is None, show=progress)
            model.reliability, model.intervals = found
        if folder is not None and rank == 0:
            finish(model, folder)
    return model


def _fold(
    folder: Path | None, again: Mapping[str, Any], seen: Sequence[SpatialData], genes: GenePanel, name: str
) -> SealModel:
    """Train as before on the sections of a fold, in a folder within that of the run."""
    of_fold = None if folder is None else folder / FOLDS / name
    return finetune(seen, panel=genes, run_dir=of_fold, resume=of_fold is not None, **again)


def _suiting(params: TrainParams, genes: GeneEncoderParams) -> TrainParams:
    """Parameters that the gene encoder can be trained by."""
    if params.kl and not genes.variational:
        raise DataError(
            f"`params.kl` is True, but the gene encoder {genes.kind!r} is not variational. Leave it out, or pass "
            "`gene_encoder='vae'`."
        )
    return params.filled(mask_genes=genes.mask_share)


def _gathered(
    train: Sequence[SpatialData],
    held: Sequence[SpatialData],
    panel: GenePanel,
    spec: CropSpec,
    *,
    wider: Sequence[float],
    table_key: str,
    work: Path,
) -> tuple[Pairs, Pairs | None]:
    """Crops and expression of the training sections, and of those that are held out, if any."""
    pairs = gather_pairs(train, panel, spec, table_key=table_key, folder=work / "train", wider=wider)
    if len(pairs) < MIN_SPOTS:
        raise DataError(f"Only {len(pairs)} spots have a usable crop; at least {MIN_SPOTS} are needed to train.")
    if not held:
        return pairs, None
    others = gather_pairs(held, panel, spec, table_key=table_key, folder=work / "held_out")
    if len(others) < 2:
        raise DataError(f"`validation` has {len(others)} spot(s) with a usable crop; at least 2 are needed.")
    return pairs, others


def _check_options(
    params: TrainParams,
    warmup: Any,
    held: Sequence[SpatialData],
    options: Mapping[str, Any],
    *,
    nowhere: bool,
    panel: GenePanel | None,
    include: Sequence[str],
) -> None:
    if panel is not None and len(include):
        raise DataError(
            f"`include` adds genes to the default panel, but `panel=` is given, too; found {include!r}. Leave one of "
            "them out, or select the panel with `sl.pp.select_genes(sections, include=[...])`."
        )
    if panel is not None and panel.layer != params.layer:
        raise PanelError(
            f"The panel's mean and std are of layer {panel.layer!r}, but `params.layer` is {params.layer!r}. Select "
            f"the panel with `sl.pp.select_genes(sections, layer={params.layer!r})`."
        )
    if refused := sorted(set(options) & RESERVED):
        raise DataError(
            f"`trainer_kwargs` must not hold {listed(refused)}: epochs, precision, clipping and accumulation are "
            "fields of `params`, `device=` names the kind of device, and `progress=` shows or hides bars."
        )
    if nowhere:
        raise DataError("`resume=True` needs the `run_dir` of the run to go on with.")
    if params.patience is not None and not held:
        raise DataError("`params.patience` stops by held-out scores; pass `validation=` sections, or leave it out.")
    if warmup is not None and not params.warmup_epochs:
        raise DataError("`warmup` is expression for the warm-up stage; say how long with `params.warmup_epochs`.")


def fields_of_view(crop_um: float | Sequence[float] | None, readout: str) -> tuple[float | None, list[float]]:
    """The crop size to train on, and further sides of squares that a readout sees."""
    if crop_um is None:
        return None, []
    first, *wider = positive_numbers("crop_um", crop_um, example="give the side of a crop in µm, e.g. 112")
    if wider and readout == "head":
        raise DataError(
            f"`crop_um` names {1 + len(wider)} fields of view, which readouts see, but `readout` is 'head', which is "
            "trained on the first alone. Leave out `readout`, or name one size."
        )
    return first, wider


def _looked_through(
    train: Sequence[SpatialData], held: Sequence[SpatialData], crop_um: float | None, table_key: str
) -> tuple[CropSpec, Sequence[SpatialData], Sequence[SpatialData]]:
    """The crops that all sections have, and the sections in the order of their names: the call's says nothing."""

    def one(sdata: SpatialData) -> tuple[CropSpec, list[str]]:
        table = _section.get_table(sdata, table_key)
        names = [part.section for part in _section.sections_of(table)]
        return _section.crop_size(table, _section.regions_of(table), crop_um), names

    found = [[*map(one, sections)] for sections in (train, held)]
    specs = [spec for side in found for spec, _ in side]
    if len(set(specs)) > 1:
        raise DataError(
            f"Sections have crops of different size: {sorted({(s.crop_um, s.crop_px) for s in specs})} (µm, px). Pair "
            "them alike with `sl.pp.pair_crops(sdata, crop_um=..., crop_px=...)`."
        )
    ordered = [in_order_of(side, [names for _, names in look]) for side, look in zip((train, held), found, strict=True)]
    return specs[0], ordered[0], ordered[1]


def _recipe(
    params: TrainParams, adapter: Adapter | Mapping[str, Any] | str, n_spots: int, n_patients: int, base: Encoder
) -> tuple[TrainParams, Adapter]:
    chosen = choose(n_spots, base.spec.n_blocks, n_patients)
    given = {name for name in chosen if getattr(params, name, None) is not None}
    resolved: Any = resolve_adapter(adapter)
    stated = adapter if isinstance(adapter, Mapping) else {}
    if counts_blocks(resolved) and not isinstance(adapter, Adapter) and "n_blocks" not in stated:
        resolved = replace(resolved, n_blocks=chosen["adapter_blocks"].value)
    else:
        given.add("adapter_blocks")
    for name, (value, reason) in chosen.items():
        if name not in given:
            logger.info("%s = %s (%s)", name, value, reason)
    return params.filled(**{k: c.value for k, c in chosen.items() if k != "adapter_blocks"}), resolved


def _train(
    model: SealModel,
    params: TrainParams,
    pairs: Pairs,
    held: Pairs | None,
    run: Run,
    *,
    extra: PairDataset | None,
    readout: str,
    stack: ExitStack,
) -> None:
    parts = [CropSet(pairs.sources, True, pairs.folder)]
    if held is not None:
        parts.append(CropSet(held.sources, False, held.folder))
    images, *others = image_inputs(model, parts, params, stack=stack, show=run.show)
    train = PairDataset(images, pairs.expression, measured=pairs.measured, extra=extras_of(pairs, params))
    section = pairs.measured.section
    held_out, baseline = None, {}
    if held is not None:
        held_out = PairDataset(others[0], held.expression, measured=held.measured)
        baseline = frozen_baseline(model, train, held_out, groups=section, seed=run.seed, precision=params.precision)
    warmup = None if extra is None else joined_expression(train, extra)
    weights = None
    if params.balance:
        named = np.array([pairs.labels["organ"], pairs.labels["section"]]).T
        weights = balanced_weights(named[section], power=params.balance)
    model.history = run_stages(
        model,
        params,
        train=train,
        held_out=held_out,
        run=run,
        warmup=warmup,
        weights=weights,
        sections=section if params.negatives == "section" else None,
        baseline=baseline,
    )
    seen = seen_spots(model, train, pairs, every_view=readout == "auto", show=run.show)
    if seen is None:
        return
    if readout == "auto":
        model.use_readouts(fitted_readouts(model, train, pairs, seen, show=run.show))
    model.novelty = fitted_novelty(model, train, pairs, seen)


def _provenance(
    train: Sequence[SpatialData],
    held: Sequence[SpatialData],
    warmup: AnnData | Sequence[AnnData] | None,
    pairs: Pairs,
    params: TrainParams,
    *,
    seed: int,
    table_key: str,
) -> dict[str, Any]:
    def names(sdata: SpatialData) -> list[str]:
        return [one.section for one in _section.sections_of(_section.get_table(sdata, table_key))]

    return {
        "sealst": __version__,
        "sections": list(chain.from_iterable(map(names, train))),
        "validation": list(chain.from_iterable(map(names, held))),
        "patients": sorted(_patients(train, table_key)),
        "warmup_patients": sorted(warmup_patients(warmup) or ()),
        # Early stopping picks the weights by these.
        "stopping_patients": sorted(_patients(held, table_key)) if params.patience else [],
        "n_spots": len(pairs),
        "seed": seed,
        "params": asdict(params),
    }


def _patients(sections: Sequence[SpatialData], table_key: str) -> set[str]:
    def of(sdata: SpatialData) -> list[str]:
        return _section.patients_of(_section.get_table(sdata, table_key))

    return set(chain.from_iterable(map(of, sections)))
