"""A model on disk: self-describing, strict, written atomically; see ``docs/model_format.md``."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import timm
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sealst._core.device import resolve_device
from sealst._core.genes.panel import GenePanel
from sealst._core.seeds import seeded
from sealst._core.space.geometry import CropSpec
from sealst._errors import CheckpointError, DataError
from sealst._files import new_folder, put_back, write_json
from sealst._validate import listed
from sealst._version import __version__
from sealst.models._adapters import (
    ADAPTER_FILE,
    FrozenParams,
    check_tensors,
    load_adapter,
    resolve_adapter,
    save_adapter,
)
from sealst.models._encoders.build import LOCAL, build_encoder, build_from_spec
from sealst.models._encoders.encoder import Encoder, weights_hash
from sealst.models._encoders.spec import EncoderSpec
from sealst.models._genes import resolve_gene_encoder
from sealst.models._seal.bases import find_base, remember_base
from sealst.models._seal.card import model_card, public_name
from sealst.models._seal.heads import HeadParams, resolve_projection
from sealst.models._seal.net import SealNet
from sealst.models._seal.readout import Readout

M = TypeVar("M", bound=SealNet)

_FORMAT = 3
#: arguments of a timm model that do not change what it makes of a crop
_FREE_ARGS = ("img_size", "in_chans", "dynamic_img_size", "global_pool", "fc_norm", "num_classes", "drop_path_rate")
#: files without which a folder is no model
FILES = ("config.json", "panel.tsv", "base.json", "heads.safetensors")


def needed_files(folder: Path) -> list[str]:
    """Files that a model's folder must have, by what its facts say."""
    names = list(FILES)
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        if _read(folder / "config.json")["adapter"]["kind"] != FrozenParams.kind:
            names.append(f"adapter/{ADAPTER_FILE}")
        if _read(folder / "base.json")["included"]:
            names += ["base/config.json", "base/model.safetensors"]
    return names


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def save_model(model: SealNet, path: Path, *, include_base: bool, overwrite: bool) -> Path:
    """Write to a temporary folder beside `path`, then rename; see `SealModel.save`."""
    spec, encoder = model.encoder.spec, model.encoder
    included = include_base or not spec.pretrained
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
        "fingerprint": model.fingerprint,
        "training": model.provenance,
    }
    if model.fitted:
        config["readouts"] = [readout.facts for readout in map(model.readout_of, model.fitted) if readout is not None]
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
        (work / "README.md").write_text(model_card(model), encoding="utf-8")
    _remember(sha256, spec.key)
    return path


def read_model(
    folder: Path, build: Callable[..., M], *, encoder: str | None, weights: str | Path | None, device: str | None
) -> M:
    """Model of a folder, made by `build` from encoder, panel and the records of its parts; see `SealModel.load`."""
    config, base = _read_json(folder)
    try:
        with seeded(0):
            model = _restored(folder, build, config, base, encoder=encoder, weights=weights)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"config.json or base.json in {str(folder)!r} is damaged: {error}.") from error
    if model.fingerprint != config["fingerprint"]:
        raise CheckpointError(
            f"Weights in {str(folder)!r} do not match config.json's fingerprint; the folder is damaged."
        )
    if (log := folder / "history.csv").is_file():
        model.history = pd.read_csv(log)
    return model.to(resolve_device(device)).eval()


def _restored(
    folder: Path, build: Callable[..., M], config: Any, base: Any, *, encoder: str | None, weights: str | Path | None
) -> M:
    spec = EncoderSpec.from_dict(config["encoder"])
    stored = folder / "base" if base["included"] else None
    built = _base(spec, stored, encoder, weights, sha256=base["sha256"])
    if (found := weights_hash(built.base_state())) != base["sha256"]:
        raise CheckpointError(
            f"The base weights of {built.spec.key!r} (sha256 {found[:12]}…) are not those the adapter was trained on "
            f"({base['sha256'][:12]}…, {spec.key!r}). Pass the right ones with `encoder=`."
        )
    # Arguments without weights of their own, such as the number of heads, are not in the hash of the weights.
    a, b = ({k: v for k, v in s.model_args.items() if k not in _FREE_ARGS} for s in (built.spec, spec))
    if a != b or (built.spec.n_prefix, built.spec.patch_px) != (spec.n_prefix, spec.patch_px):
        raise CheckpointError(
            f"The base encoder {built.spec.key!r} has the right weights, but is built with {a}; the adapter was "
            f"trained on {b}. Pass the right one with `encoder=`."
        )
    try:
        parts = {
            "adapter": resolve_adapter(config["adapter"]),
            "gene_encoder": resolve_gene_encoder(config["gene_encoder"]),
            "head": HeadParams(**config["head"]),
            "projection": resolve_projection(config["projection"]),
            "organs": list(config["organs"]),
        }
    except DataError as error:
        raise CheckpointError(f"config.json is damaged or of another version: {error}") from error
    # The stored record decides how crops are fed; where the weights are now is all that may have changed.
    elsewhere = encoder is not None or (spec.key.startswith(LOCAL) and stored is None)
    key = built.spec.key if elsewhere else spec.key
    if spec.key.startswith(LOCAL):
        _remember(base["sha256"], built.spec.key, replace=elsewhere)
    moved = Encoder(built.vit, replace(spec, key=key, model_args=built.spec.model_args))
    model = build(moved, GenePanel.from_tsv(folder / "panel.tsv"), crop=CropSpec(**config["crop"]), **parts)
    # Models from before there were others have the head alone.
    model.use_readouts([Readout(model.dim, len(model.panel), facts) for facts in config.get("readouts", [])])
    try:
        heads = load_file(folder / "heads.safetensors")
        load_adapter(model.encoder, folder / "adapter")
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"Weights in {str(folder)!r} cannot be read: {error}") from error
    check_tensors("heads.safetensors", model.own_state(), heads)
    model.load_trained(heads)
    model.provenance = config["training"]
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
    if spec.hf_id:
        # Of a pathology encoder the stored record says how it is built, also when the registry has changed since.
        return build_from_spec(spec, weights=weights or stored)
    if stored is not None and weights is None:
        return build_encoder(f"local-dir:{stored}", pool=spec.pool)
    name = spec.key.removeprefix(LOCAL)
    # Models of earlier versions hold the whole path.
    if spec.key.startswith(LOCAL) and weights is None and not Path(name).is_absolute():
        return build_encoder(f"{LOCAL}{find_base(sha256, name)}", pool=spec.pool)
    return build_encoder(spec.key, pool=spec.pool, weights=weights)


def _read_json(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    put_back(folder)
    if not folder.exists():
        raise CheckpointError(f"No model at {str(folder)!r} (looked for {str(folder.absolute())!r}).")
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise CheckpointError(
            f"{str(folder)!r} is not a complete sealst model: it lacks {listed(missing)}.{_model_near(folder)}"
        )
    try:
        config, base = _read(folder / "config.json"), _read(folder / "base.json")
    except ValueError as error:
        raise CheckpointError(f"A JSON file in {str(folder)!r} is damaged: {error}.") from error
    if not isinstance(config, dict) or not isinstance(base, dict):
        raise CheckpointError(f"A JSON file in {str(folder)!r} is damaged: it holds no mapping.")
    if config.get("format") != _FORMAT:
        raise CheckpointError(
            f"Model format {config.get('format')!r} in {str(folder)!r} (written by sealst {config.get('sealst')}) is "
            f"not the one that this version reads ({_FORMAT})."
        )
    return config, base


def _model_near(folder: Path) -> str:
    """Where a model lies in a folder that is none: in the folder of its run, or one folder further down."""
    inside = folder / "model"
    if _is_complete(inside):
        return f" It is the folder of a run; its model is {str(inside)!r}."
    below = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    found = [str(p) for one in below for p in (one, one / "model") if _is_complete(p)]
    return f" {'A model lies' if len(found) == 1 else 'Models lie'} in {listed(found, 4)}." if found else ""


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in FILES)
