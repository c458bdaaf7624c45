"""A model on disk: self-describing, strict, written atomically; see ``docs/model_format.md``."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import pandas as pd
import timm
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from sealst._core.device import resolve_device
from sealst._core.genes.panel import GenePanel
from sealst._core.seeds import seeded
from sealst._core.space.geometry import CropSpec
from sealst._errors import CheckpointError, SealstError
from sealst._files import new_folder, read_json, read_text, write_json, write_text
from sealst._given.schema import Count, Name, Names, Number, Positive, Stored, Text, one_of
from sealst._validate import listed, resolve_params
from sealst._version import __version__
from sealst.models._adapters import (
    ADAPTER_FILE,
    FrozenParams,
    check_tensors,
    load_adapter,
    resolve_adapter,
    save_adapter,
    tensor_shapes,
)
from sealst.models._encoders.build import build_encoder, build_from_spec
from sealst.models._encoders.encoder import Encoder, weights_hash
from sealst.models._encoders.names import LOCAL
from sealst.models._encoders.records import REGISTRY
from sealst.models._encoders.spec import EncoderSpec
from sealst.models._folder import FILES, check_complete
from sealst.models._genes import resolve_gene_encoder
from sealst.models._intervals import INTERVALS_FILE, read_intervals, written_intervals
from sealst.models._local import LOCAL_FILE, LocalFacts, LocalHead
from sealst.models._novelty import NOVELTY_FILE, Novelty, NoveltyFacts
from sealst.models._seal.bases import find_base, remember_base
from sealst.models._seal.card import model_card, public_name
from sealst.models._seal.heads import HeadParams, resolve_projection
from sealst.models._seal.net import SealNet, own_parts
from sealst.models._seal.readout import FIELDS, RIDGE, SURROUNDINGS, Readout
from sealst.models._seal.reliability import RELIABILITY_FILE, read_reliability, written

M = TypeVar("M", bound=SealNet)

_FORMAT = 3
#: arguments of a timm model that do not change what it makes of a crop
_FREE_ARGS = (
    "img_size",
    "in_chans",
    "dynamic_img_size",
    "global_pool",
    "fc_norm",
    "use_fc_norm",
    "num_classes",
    "drop_path_rate",
)
#: fields of view that a readout may see
_MAX_FIELDS = 16


def needed_files(folder: Path) -> list[str]:
    """Files that a model's folder must have, by what its facts say."""
    names = list(FILES)
    with suppress(OSError, SealstError):
        config, base = _read_facts(folder)
        if config.adapter.get("kind") != FrozenParams.kind:
            names.append(f"adapter/{ADAPTER_FILE}")
        if base.included:
            names += ["base/config.json", "base/model.safetensors"]
        if config.novelty is not None:
            names.append(NOVELTY_FILE)
        if config.local is not None:
            names.append(LOCAL_FILE)
    return names


class _Training(Stored):
    """What is read of the run's own account."""

    sections: Names = ()
    validation: Names = ()
    patients: Names = ()
    warmup_patients: Names = ()
    stopping_patients: Names = ()
    n_spots: Number | None = None
    seed: int | None = None
    note: Text = ""
    source: Text = ""


class _Readout(Stored):
    kind: Annotated[str, one_of(RIDGE, SURROUNDINGS, FIELDS)]
    target: Name
    rank: Number | None
    held_out: Text
    scores: Annotated[dict[str, float], Field(min_length=1)]
    programs: Count | None = None
    surroundings_um: Positive | None = None
    fields_um: Annotated[tuple[Positive, ...], Field(strict=False, min_length=2, max_length=_MAX_FIELDS)] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it has what its kind needs, and nothing else."""
        wide = self.kind == SURROUNDINGS or (self.kind == FIELDS and self.surroundings_um is not None)
        return wide == bool(self.surroundings_um) and (self.kind == FIELDS) == bool(self.fields_um)


class _Config(Stored):
    """``config.json``; what its records hold is checked by the classes that they become."""

    format: Literal[3]
    encoder: dict[str, Any]
    adapter: dict[str, Any]
    gene_encoder: dict[str, Any]
    head: dict[str, Any]
    projection: dict[str, Any]
    organs: Names
    crop: dict[str, Any]
    fingerprint: Name
    training: dict[str, Any]
    #: models from before there were others have the head alone
    readouts: Annotated[tuple[dict[str, Any], ...], Field(strict=False)] = ()
    #: of the file of its name, which models from before have not
    novelty: NoveltyFacts | None = None
    #: of the file of its name, where one was fitted
    local: LocalFacts | None = None


class _Base(Stored):
    sha256: Name
    included: bool


def save_model(model: SealNet, path: Path, *, include_base: bool, overwrite: bool) -> Path:
    """Write to a temporary folder beside `path`, then rename; see `SealModel.save`."""
    spec, encoder = model.encoder.spec, model.encoder
    included = include_base or not spec.pretrained
    fingerprint = model.fingerprint
    for name in ("reliability", "intervals"):
        if (known := getattr(model, name)) is not None and known.model != fingerprint:
            raise CheckpointError(
                f"`model.{name}` is of the model {known.model}, but the weights are now those of {fingerprint}. "
                "Measure it again, or set it to None, which says that it is unknown."
            )
    for name in ("novelty", "local"):
        if (kept := getattr(model, name)) is not None and kept.images != model.image_fingerprint:
            raise CheckpointError(
                f"`model.{name}` is of embeddings before the adapter was trained on. Set it to None, which says that "
                "it is unknown."
            )
    config = {
        "format": _FORMAT,
        "sealst": __version__,
        "encoder": spec.to_dict() | {"key": stored_key(spec)},
        "adapter": model.adapter.to_dict(),
        "gene_encoder": model.gene_params.to_dict(),
        "head": asdict(model.head),
        "projection": asdict(model.projection),
        "organs": list(model.organs),
        "crop": asdict(model.crop),
        "fingerprint": fingerprint,
        "training": model.provenance,
    }
    if model.fitted:
        config["readouts"] = [readout.facts for readout in map(model.readout_of, model.fitted) if readout is not None]
    if model.novelty is not None:
        config["novelty"] = model.novelty.facts()
    if model.local is not None:
        config["local"] = model.local.facts()
    sha256 = weights_hash(encoder.base_state())
    with new_folder(path, overwrite=overwrite, marker="config.json") as work:
        write_json(work / "config.json", config)
        model.panel.to_tsv(work / "panel.tsv")
        write_json(work / "base.json", {"sha256": sha256, "included": included})
        save_adapter(encoder, work / "adapter")
        heads = {k: v.detach().cpu().contiguous() for k, v in model.own_state().items()}
        save_file(heads, work / "heads.safetensors")
        if included:
            # A timm folder, which ``timm.create_model("local-dir:…")`` loads.
            plain = encoder.plain()
            plain.load_state_dict(encoder.base_state())
            args = dict(spec.model_args)
            timm.models.save_for_hf(plain, str(work / "base"), model_args=args, safe_serialization=True)
        if len(model.history):
            model.history.to_csv(work / "history.csv", index=False)
        if model.reliability is not None:
            write_text(work / RELIABILITY_FILE, written(model.reliability))
        if model.intervals is not None:
            write_text(work / INTERVALS_FILE, written_intervals(model.intervals))
        if model.novelty is not None:
            model.novelty.save(work / NOVELTY_FILE)
        if model.local is not None:
            model.local.save(work / LOCAL_FILE)
        (work / "README.md").write_text(model_card(model), encoding="utf-8")
    _remember(sha256, spec.key)
    return path


def read_model(
    folder: Path, build: Callable[..., M], *, encoder: str | None, weights: str | Path | None, device: str | None
) -> M:
    """Model of a folder, made by `build` from encoder, panel and the records of its parts; see `SealModel.load`."""
    check_complete(folder)
    config, base = _read_facts(folder)
    with seeded(0):
        model = _restored(folder, build, config, base, encoder=encoder, weights=weights)
    if model.fingerprint != config.fingerprint:
        raise CheckpointError(
            f"Weights in {str(folder)!r} do not match config.json's fingerprint; the folder is damaged."
        )
    if (log := folder / "history.csv").is_file():
        model.history = _history(log)
    if (reliability := folder / RELIABILITY_FILE).is_file():
        model.reliability = read_reliability(reliability, model=config.fingerprint)
    if (intervals := folder / INTERVALS_FILE).is_file():
        model.intervals = read_intervals(intervals, model=config.fingerprint, genes=model.panel.genes)
    if config.novelty is not None:
        images = model.image_fingerprint
        model.novelty = Novelty.load(folder / NOVELTY_FILE, config.novelty, dim=model.dim, images=images)
    if config.local is not None:
        shape = {"width": model.encoder.spec.width, "n_genes": len(model.panel)}
        model.local = LocalHead.load(folder / LOCAL_FILE, config.local, images=model.image_fingerprint, **shape)
    return model.to(resolve_device(device)).eval()


def _restored(
    folder: Path,
    build: Callable[..., M],
    config: _Config,
    base: _Base,
    *,
    encoder: str | None,
    weights: str | Path | None,
) -> M:
    panel = GenePanel.from_tsv(folder / "panel.tsv")
    try:
        spec = EncoderSpec.from_dict(config.encoder)
        parts: dict[str, Any] = {
            "gene_encoder": resolve_gene_encoder(config.gene_encoder),
            "head": resolve_params(HeadParams, config.head, name="head"),
            "projection": resolve_projection(config.projection),
            "organs": config.organs,
        }
        adapter = resolve_adapter(config.adapter)
        crop = resolve_params(CropSpec, config.crop, name="crop")
    except SealstError as error:
        raise CheckpointError(f"config.json is damaged or of another version: {error}") from error
    for facts in config.readouts:
        if (fields := facts.get("fields_um")) and fields[0] != crop.crop_um:
            raise CheckpointError(
                f"config.json is damaged: `fields_um` of a readout begins with {fields[0]:g}, but crops are "
                f"{crop.crop_um:g} µm."
            )
    # Before anything is allocated: what the facts describe is what the files hold.
    with torch.device("meta"):
        described = dict(own_parts(spec.dim, len(panel), **parts))
        readouts = {facts["kind"]: Readout(spec.dim, len(panel), facts) for facts in config.readouts}
        own = nn.ModuleDict(described | {"fitted": nn.ModuleDict(readouts)}).state_dict()
    check_tensors("heads.safetensors", own, tensor_shapes(folder / "heads.safetensors"))
    stored = folder / "base" if base.included else None
    built = _base(spec, stored, encoder, weights, sha256=base.sha256)
    if (found := weights_hash(built.base_state())) != base.sha256:
        raise CheckpointError(
            f"The base weights of {built.spec.key!r} (sha256 {found[:12]}…) are not those the adapter was trained on "
            f"({base.sha256[:12]}…, {spec.key!r}). Pass the right ones with `encoder=`."
        )
    if built.spec.dim != spec.dim:
        raise CheckpointError(
            f"config.json is damaged: `encoder.dim` is {spec.dim}, but embeddings of {built.spec.key!r} pooled by "
            f"{spec.pool!r} have {built.spec.dim} values."
        )
    # Arguments without weights of their own, such as the number of heads, are not in the hash of the weights.
    a, b = ({k: v for k, v in s.model_args.items() if k not in _FREE_ARGS} for s in (built.spec, spec))
    if a != b or (built.spec.n_prefix, built.spec.patch_px) != (spec.n_prefix, spec.patch_px):
        raise CheckpointError(
            f"The base encoder {built.spec.key!r} has the right weights, but is built with {a}; the adapter was "
            f"trained on {b}. Pass the right one with `encoder=`."
        )
    # The stored record decides how crops are fed; where the weights are now is all that may have changed.
    elsewhere = encoder is not None or (spec.key.startswith(LOCAL) and stored is None)
    key = built.spec.key if elsewhere else spec.key
    if spec.key.startswith(LOCAL):
        _remember(base.sha256, built.spec.key, replace=elsewhere)
    moved = Encoder(built.vit, replace(spec, key=key, model_args=built.spec.model_args))
    model = build(moved, panel, crop=crop, adapter=adapter, stored=True, **parts)
    model.use_readouts([Readout(model.dim, len(model.panel), facts) for facts in config.readouts])
    try:
        heads = load_file(folder / "heads.safetensors")
        load_adapter(model.encoder, folder / "adapter")
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"Weights in {str(folder)!r} cannot be read: {error}") from error
    check_tensors("heads.safetensors", model.own_state(), heads)
    model.load_trained(heads)
    model.provenance = config.training
    return model


def stored_key(spec: EncoderSpec) -> str:
    """Name of an encoder as a saved model has it; of a folder its name alone, see `bases`."""
    return f"{LOCAL}{public_name(spec)}" if spec.key.startswith(LOCAL) else spec.key


def _remember(sha256: str, key: str, *, replace: bool = True) -> None:
    folder = Path(key.removeprefix(LOCAL))
    if key.startswith(LOCAL) and folder.is_absolute():
        remember_base(sha256, folder, replace=replace)


def _base(
    spec: EncoderSpec, stored: Path | None, encoder: str | None, weights: str | Path | None, *, sha256: str
) -> Encoder:
    """The base encoder, from where the user says it is, from the model's own folder, or from its usual place."""
    if encoder is not None:
        return build_encoder(encoder, pool=spec.pool, weights=weights)
    if spec.hf_id or spec.key in REGISTRY:
        # Of an encoder with a key the stored record says how it is built, also when the registry has changed since.
        return build_from_spec(spec, weights=weights or stored)
    if stored is not None and weights is None:
        return build_encoder(f"local-dir:{stored}", pool=spec.pool)
    name = spec.key.removeprefix(LOCAL)
    # Models of earlier versions hold the whole path.
    if spec.key.startswith(LOCAL) and weights is None and not Path(name).is_absolute():
        return build_encoder(f"{LOCAL}{find_base(sha256, name)}", pool=spec.pool)
    return build_encoder(spec.key, pool=spec.pool, weights=weights)


def _read_facts(folder: Path) -> tuple[_Config, _Base]:
    config, base = (read_json(folder / name) for name in ("config.json", "base.json"))
    facts = _Config.of(config, where=f"config.json in {str(folder)!r}")
    where = f"of config.json in {str(folder)!r}"
    _Training.of(facts.training, where=f"'training' {where}")
    made = [_Readout.of(stated, where=f"'readouts' {where}") for stated in facts.readouts]
    kinds = [one.kind for one in made]
    if len(set(kinds)) < len(kinds) or not all(one.is_whole for one in made):
        raise CheckpointError(
            f"'readouts' {where} must be of different kinds, {SURROUNDINGS!r} has `surroundings_um`, {FIELDS!r} "
            f"`fields_um`, and {RIDGE!r} neither; found {listed(kinds)}."
        )
    return facts, _Base.of(base, where=f"base.json in {str(folder)!r}")


def _history(path: Path) -> pd.DataFrame:
    """Training log; its numbers are numbers."""
    try:
        history = pd.read_csv(io.StringIO(read_text(path, kind=CheckpointError)))
    except ValueError as error:
        raise CheckpointError(f"{str(path)!r} is damaged: it is no table ({error}).") from error
    words = [name for name in history if name != "stage" and not pd.api.types.is_numeric_dtype(history[name])]
    if words:
        raise CheckpointError(f"{str(path)!r} is damaged: {listed(words)} must hold numbers.")
    return history
