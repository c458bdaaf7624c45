"""Build encoders: pathology encoders by key, timm models by name, timm folders."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from sealst._core.device import evaluating
from sealst._core.seeds import seeded
from sealst._errors import DataError, WeightsError
from sealst._files import absolute, read_json
from sealst._given.schema import Args, Name, Stored
from sealst._settings import resolve_seed
from sealst._validate import check_choice, listed, shown
from sealst.models._encoders.blocks import AttentionPooler, block_layers
from sealst.models._encoders.encoder import Encoder
from sealst.models._encoders.names import HUB, LOCAL, no_encoder
from sealst.models._encoders.network import hub_or_cache
from sealst.models._encoders.records import REFUSED, REGISTRY
from sealst.models._encoders.spec import FETCHING, POOLS, EncoderSpec
from sealst.models._encoders.weights import (
    UNREACHED,
    State,
    check_finite,
    fill,
    find_weights,
    load_weights,
    local_weights,
    read_tensors,
)

#: least side of the empty image that shows what a network without tokens returns
_PROBE_PX = 64


def build_encoder(
    encoder: str,
    *,
    pretrained: bool = True,
    pool: str | None = None,
    weights: str | Path | None = None,
    seed: int | None = None,
) -> Encoder:
    """Build an image encoder with its pretrained weights.

    Parameters
    ----------
    encoder
        Key of a pathology encoder (``"uni2-h"``, see `list_encoders`); ``"sealst-tiny"``, a small one that is shipped
        and has seen nothing but drawn tissue, for demonstrations; name of a timm vision transformer or convolutional
        network (``"vit_small_patch16_224"``, ``"resnet50"``, ``"hf-hub:owner/name"``); or
        ``"local-dir:<folder>"`` with timm's ``config.json`` and ``model.safetensors``.
    pretrained
        False builds random weights from `seed`; never done silently.
    pool
        ``"cls"``, ``"mean"`` (of the patch tokens), ``"cls+mean"`` (concatenated, twice as long), or where the encoder
        has an attention pooler ``"attn"`` and ``"attn-proj"``. Default: what the key stands for; for other models
        ``"cls"``, or ``"mean"`` where there is no class token.
    weights
        File (.safetensors, .pth, .bin) or folder with the weights, in their published layout or in timm's. By default
        they are looked for in the folder that the environment variable ``SEALST_WEIGHTS`` names (``<key>/`` or
        ``<key>.<ending>`` inside), in the hub's cache, and on the hub.
    seed
        Seed of random weights; default ``settings.seed``.

    Returns
    -------
    The encoder, in evaluation mode, on the CPU.

    Raises
    ------
    WeightsError
        When the name is unknown, weights cannot be had, or a file holds other weights.
    DataError
        When the encoder has no such pooling.

    Examples
    --------
    >>> import sealst as sl
    >>> sl.models.build_encoder("sealst-tiny").spec.dim
    256
    >>> uni = sl.models.build_encoder("uni", weights="uni/pytorch_model.bin")  # doctest: +SKIP
    """
    if not isinstance(encoder, str):
        raise TypeError(f"`encoder` must be the name of an encoder, found {type(encoder).__name__}.")
    if pool is not None:
        check_choice("pool", pool, POOLS)
    if encoder.startswith(LOCAL):
        encoder = f"{LOCAL}{absolute(encoder.removeprefix(LOCAL))}"
    if encoder in REFUSED:
        raise WeightsError(REFUSED[encoder])
    if weights is not None and not pretrained:
        raise DataError("`weights` names pretrained weights, but `pretrained` is False; pass one of them.")
    # Of pretrained weights nothing is drawn; their record does not depend on the settings.
    used = 0 if pretrained and seed is None else resolve_seed(seed)
    if encoder in REGISTRY:
        return build_from_spec(REGISTRY[encoder], pretrained=pretrained, pool=pool, weights=weights, seed=used)
    # Where its weights are looked for; what it is the model itself tells.
    known = EncoderSpec(
        key=encoder, arch=encoder, pool="cls", dim=1, n_blocks=0, n_prefix=0, patch_px=1, mean=(0,) * 3, std=(1,) * 3
    )
    path = None
    if weights is not None:
        path = find_weights(known, weights)
    elif pretrained and not encoder.startswith((LOCAL, HUB)):
        path = local_weights(known)
    _check_name(encoder, pretrained and path is None)
    with seeded(used):
        module = _create(encoder, pretrained and path is None)
    spec = _describe(encoder, module, pool, pretrained=pretrained, seed=used)
    if path is not None:
        load_weights(module, spec, path)
    if pretrained:
        check_finite(module, encoder)
    return Encoder(module, spec).eval()


def build_from_spec(
    spec: EncoderSpec,
    *,
    pretrained: bool = True,
    pool: str | None = None,
    weights: str | Path | None = None,
    seed: int = 0,
) -> Encoder:
    """Build the encoder that a record describes; see `build_encoder`."""
    _check_pool(spec, pool or spec.pool, has_class_token=spec.n_prefix > 0)
    if not pretrained:
        return _built(_module(spec, seed), spec, pool=pool or spec.pool, pretrained=False, seed=seed)
    path = find_weights(spec, weights)
    tensors = read_tensors(path, spec.key)
    # Not those of the registry itself: what a stored record says is anybody's word.
    if REGISTRY.get(spec.key) != spec:
        _check_size(spec.arch, spec.model_args, sum(t.numel() for t in tensors.values()), path)
    vit = _module(spec, seed)
    fill(vit, spec, tensors, path)
    return _built(vit, spec, pool=pool or spec.pool, pretrained=True, seed=seed)


def build_from_tensors(spec: EncoderSpec, tensors: State, path: Path) -> Encoder:
    """Build the encoder that a record describes, with weights that were read from a file `path` holding more."""
    vit = _module(spec, 0)
    fill(vit, spec, tensors, path)
    return _built(vit, spec, pool=spec.pool, pretrained=True, seed=0)


def _module(spec: EncoderSpec, seed: int) -> Any:
    """The timm module of a record, with random weights."""
    with seeded(seed):
        vit: Any = timm.create_model(spec.arch, **{**spec.model_args, "num_classes": 0, "dynamic_img_size": True})
        if spec.pooler_args:
            add_pooler(vit, spec)
    return vit


def _built(vit: Any, spec: EncoderSpec, *, pool: str, pretrained: bool, seed: int) -> Encoder:
    if pretrained:
        check_finite(vit, spec.key)
    # The grid may be that of the file.
    side = vit.patch_embed.img_size[0]
    built = replace(
        spec,
        pool=pool,
        dim=spec.dim_of(pool),
        model_args=dict(spec.model_args) | {"img_size": side},
        pretrained=pretrained,
        seed=seed,
    )
    return Encoder(vit, built).eval()


def add_pooler(vit: Any, spec: EncoderSpec) -> None:
    """Give a timm vision transformer the attention pooler of a record, where timm has its own kind of pooler."""
    vit.attn_pool = AttentionPooler(spec.width, **spec.pooler_args)
    # All tokens are pooled, the class token too.
    vit.pool_include_prefix = True


def _check_pool(spec: EncoderSpec, pool: str, *, has_class_token: bool) -> None:
    if spec.family != "vit" and pool != "mean":
        raise DataError(f"{spec.key!r} is a convolutional network and has no tokens to pool; use `pool='mean'`.")
    if "cls" in pool and not has_class_token:
        raise DataError(f"{spec.key!r} has no class token; use `pool='mean'`.")
    offered = [p for p in POOLS if p in spec.pools or not p.startswith("attn")]
    if pool not in offered:
        raise DataError(f"{spec.key!r} has no attention pooler for `pool={pool!r}`; it offers {listed(offered)}.")


def _describe(encoder: str, module: Any, pool: str | None, *, pretrained: bool, seed: int) -> EncoderSpec:
    """Record of a timm model, from its own configuration."""
    config = timm.data.resolve_model_data_config(module)
    if isinstance(module, VisionTransformer | Eva):
        facts: dict[str, Any] = {
            "pools": ("mean",) if module.cls_token is None else ("cls", "mean", "cls+mean"),
            "width": module.num_features,
            "n_blocks": len(module.blocks),
            "n_prefix": module.num_prefix_tokens,
            "patch_px": int(module.patch_embed.patch_size[0]),
        }
    else:
        facts = {"family": "cnn", "pools": ("mean",), "width": _pooled_width(module, encoder)}
        facts |= {"n_blocks": len(block_layers(module)), "n_prefix": 0, "patch_px": 1}
    args = {}
    if encoder.startswith(LOCAL):
        args = dict(_local_config(Path(encoder.removeprefix(LOCAL))).model_args)
    pool = pool or facts["pools"][0]
    spec = EncoderSpec(
        key=encoder,
        arch=str(module.pretrained_cfg.get("architecture", encoder)),
        pool=pool,
        dim=facts["width"] * len(pool.split("+")),
        model_args=args,
        input_px=int(config["input_size"][-1]),
        interpolation=str(config["interpolation"]),
        mean=tuple(float(v) for v in config["mean"]),
        std=tuple(float(v) for v in config["std"]),
        licence=str(module.pretrained_cfg.get("license") or "unknown"),
        n_params=sum(p.numel() for p in module.parameters()),
        pretrained=pretrained,
        seed=seed,
        **facts,
    )
    _check_pool(spec, pool, has_class_token="cls" in spec.pools)
    return spec


def _pooled_width(module: Any, name: str) -> int:
    """Length of what a network without tokens returns, found on an empty image; raises for other kinds of models."""
    side = max(_PROBE_PX, int(module.pretrained_cfg.get("input_size", (3, 0, 0))[-1]))
    images = torch.zeros(1, 3, side, side)
    try:
        with evaluating(module), torch.inference_mode():
            maps, pooled = module.forward_features(images), module(images)
    except (AssertionError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise _other_kind(module, name) from error
    # Windowed transformers give maps too, but channels last.
    if maps.ndim != 4 or maps.shape[1] != module.num_features or pooled.ndim != 2:
        raise _other_kind(module, name)
    return int(pooled.shape[1])


def _other_kind(module: Any, name: str) -> WeightsError:
    return WeightsError(
        f"{name!r} is a {type(module).__name__}: neither a timm VisionTransformer or Eva nor a convolutional "
        "network that takes crops of any size. Pass a key of `sl.models.list_encoders()` or another timm model."
    )


class _LocalConfig(Stored):
    """What timm reads of the ``config.json`` of a folder."""

    architecture: Name
    model_args: Args = {}
    pretrained_cfg: dict[str, Any] = {}


def _local_config(folder: Path) -> _LocalConfig:
    path = folder / "config.json"
    config = _LocalConfig.of(read_json(path, kind=WeightsError), where=repr(str(path)), kind=WeightsError)
    if not timm.is_model(config.architecture):
        raise WeightsError(f"{str(path)!r}: `architecture` must be a model of timm, found {config.architecture!r}.")
    if wrong := [name for name in config.model_args if name.startswith(FETCHING)]:
        raise WeightsError(f"{str(path)!r}: `model_args` names weights to fetch ({wrong[0]!r}), which is never done.")
    return config


def _check_size(arch: str, args: Mapping[str, Any], found: int, path: Path) -> None:
    """Raise where a record describes a network that the numbers of a file cannot fill, before it is built."""
    options = dict(args) | {"num_classes": 0}
    with torch.device("meta"):
        try:
            module = timm.create_model(arch, **options)
        except (RuntimeError, TypeError, ValueError, AssertionError, KeyError, ArithmeticError) as error:
            problem = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise WeightsError(f"{arch!r} cannot be built with {shown(options)} ({problem}).") from error
    n = sum(p.numel() for p in module.parameters())
    # Half of them are enough: grids of positions may be widened.
    if n > 2 * found:
        raise WeightsError(
            f"{arch!r} with {shown(options)} has {n:,} weights, but {str(path)!r} only {found:,}: the record is "
            "damaged, or belongs to other weights."
        )


def _check_name(encoder: str, needs_weights: bool) -> None:
    if encoder.startswith(LOCAL):
        folder = Path(encoder.removeprefix(LOCAL))
        needed = ["config.json"] + (["model.safetensors"] if needs_weights else [])
        if missing := [name for name in needed if not (folder / name).is_file()]:
            raise WeightsError(
                f"Folder {str(folder)!r} lacks {listed(missing)}. A local encoder is a timm folder: config.json and "
                "model.safetensors."
            )
        config = _local_config(folder)
        if needs_weights:
            path = folder / "model.safetensors"
            # A number has a byte or more.
            _check_size(config.architecture, config.model_args, path.stat().st_size, path)
    elif Path(encoder).is_dir():
        if (Path(encoder) / "panel.tsv").is_file():
            raise WeightsError(f"{encoder!r} is a saved SEAL model, no encoder: use `sl.models.load({encoder!r})`.")
        raise WeightsError(f"{encoder!r} is a folder: pass '{LOCAL}{encoder}'.")
    elif encoder.startswith(("/", ".", "~")):
        raise WeightsError(
            f"No folder at {encoder!r}. Weights on disk are named '{LOCAL}<folder>', a folder with config.json and "
            "model.safetensors."
        )
    elif not encoder.startswith(HUB) and not timm.is_model(encoder.split(".")[0]):
        raise no_encoder(encoder, timm.list_models())


def _create(encoder: str, pretrained: bool) -> nn.Module:
    # Asked for no classifier, timm would load whatever fits, and leave the rest random.
    options: dict[str, Any] = {"pretrained": True} if pretrained else {"pretrained": False, "num_classes": 0}
    # Of a model of the hub, what it is stands there too.
    asks = encoder.startswith(HUB) or (pretrained and not encoder.startswith(LOCAL))
    reached = True
    try:
        with hub_or_cache() if asks else nullcontext(True) as reached:
            try:
                module: Any = timm.create_model(encoder, dynamic_img_size=True, **options)
            except TypeError:
                # Convolutional networks take crops of any size and do not know the option.
                module = timm.create_model(encoder, **options)
        if pretrained:
            module.reset_classifier(0)
        return module
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        problem = f"{type(error).__name__}: {error}".partition("\n")[0] if reached else UNREACHED
        raise WeightsError(
            f"Weights of {encoder!r} could not be loaded ({problem}). Put "
            "config.json and model.safetensors into a folder and pass 'local-dir:<folder>'; gated weights need access "
            "to be granted on the model's page and a token in HF_TOKEN. `pretrained=False` builds random weights."
        ) from error
