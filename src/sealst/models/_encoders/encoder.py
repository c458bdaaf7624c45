"""Image encoders: crops in, embeddings out; also in the form that other tools take."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sealst._core.device import autocast, cuda_dtype, evaluating, has_bf16, to_images
from sealst._core.space.views import check_views, over_views, symmetry, turned_back
from sealst._errors import DataError, OrderError
from sealst._html import text_as_html
from sealst._settings import settings
from sealst._validate import check_positive
from sealst.models._encoders.blocks import class_token, gives_class_token
from sealst.models._encoders.spec import TRUNK_FEEDING, EncoderSpec


class Encoder(nn.Module):
    """A vision model that turns crops into embeddings; a transformer can be split where cached tokens enter.

    Parameters
    ----------
    vit
        timm vision transformer without classifier, or (`spec.family` ``"cnn"``) a timm model that pools by itself.
    spec
        Its facts.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, vit: nn.Module, spec: EncoderSpec) -> None:
        super().__init__()
        self.backbone: Any = vit
        self.spec = spec
        #: names of the parameters that an adapter trains, set by `add_adapter`
        self.adapted: tuple[str, ...] = ()
        #: pretrained weights of the module that an adapter trains itself, on the CPU
        self.originals: dict[str, torch.Tensor] = {}
        self.bottleneck: nn.Module | None = None
        self._adapter_off = False
        part: Any
        for part in vit.modules():
            # EVA's attention can add its biases by reaching for the weights, past whatever an adapter puts in place.
            if hasattr(part, "qkv_bias_separate"):
                part.qkv_bias_separate = True
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)

    @property
    def vit(self) -> Any:
        """The timm module, with LoRA layers in place where an adapter was added."""
        return self.backbone.get_base_model() if hasattr(self.backbone, "get_base_model") else self.backbone

    @property
    def device(self) -> torch.device:
        """Device of the encoder."""
        return self.mean.device

    @property
    def supports_trunk(self) -> bool:
        """Whether tokens pass from block to block, so that `trunk` and `tail` exist."""
        return self.spec.family == "vit"

    @property
    def n_light(self) -> int:
        """How many of the last blocks run for the class token alone, which costs next to nothing: 0 or 1."""
        return int(self.supports_trunk and self.spec.pool == "cls" and gives_class_token(self.vit.blocks[-1]))

    def trunk(self, images: torch.Tensor, n_blocks: int) -> torch.Tensor:
        """Tokens (B, tokens, width) after the first `n_blocks` blocks, before the final norm.

        Parameters
        ----------
        images
            Crops (B, 3, H, W), float in [0, 1].
        n_blocks
            How many blocks to run, at least 1.
        """
        self._check_blocks()
        if n_blocks < 1:
            raise DataError(f"`n_blocks` must be at least 1, found {n_blocks}.")
        side = images.shape[-1]
        if side % self.spec.patch_px or images.shape[-2] % self.spec.patch_px:
            raise DataError(
                f"Crops of {side} px do not divide into the encoder's patches of {self.spec.patch_px} px. Pair crops "
                f"again with `crop_px={max(side // self.spec.patch_px, 1) * self.spec.patch_px}`."
            )
        found = self.vit.forward_intermediates(
            self._normalised(images),
            indices=[n_blocks - 1],
            return_prefix_tokens=self.spec.n_prefix > 0,
            norm=False,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        # timm gives prefix tokens apart.
        return found[0] if self.spec.n_prefix == 0 else torch.cat([found[0][1], found[0][0]], dim=1)

    def tail(self, tokens: torch.Tensor, n_blocks: int) -> torch.Tensor:
        """Embeddings (B, dim) from tokens that went through the first `n_blocks` blocks."""
        self._check_blocks()
        vit = self.vit
        blocks = list(vit.blocks[n_blocks:])
        last = blocks.pop() if blocks and self.n_light else None
        turned = self._rotary(tokens)
        for i, block in enumerate(blocks, n_blocks):
            tokens = block(tokens) if turned is None else block(tokens, rope=turned(i))
        tokens = vit.norm(tokens if last is None else class_token(last, tokens))
        pooled = [vit.fc_norm(self._pooled(tokens, name)) for name in self.spec.pool.split("+")]
        return self._behind(torch.cat(pooled, dim=1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, dim) of crops (B, 3, H, W), float in [0, 1]."""
        if not self.supports_trunk:
            return self._behind(self.backbone(self._normalised(images)))
        # The last block belongs to the tail, which may need little of it.
        n_blocks = max(1, self.spec.n_blocks - 1)
        return self.tail(self.trunk(images, n_blocks), n_blocks)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Inside a ``with`` block, passes are deterministic, without gradient, and in the precision of `spec`."""
        with evaluating(self), torch.inference_mode(), autocast(self.device, self.spec.precision):
            yield

    def embed(self, crops: np.ndarray, *, views: int = 1, batch_size: int | None = None) -> np.ndarray:
        """Embed crops, on the encoder's device.

        Parameters
        ----------
        crops
            uint8, (n, height, width, 3).
        views
            Over how many flips and rotations of each crop to average, 1 (as it is) to 8; each is a forward pass.
        batch_size
            Crops per forward pass; default ``settings.batch_size``.

        Returns
        -------
        float32 (n, dim), deterministic. On CUDA devices the encoder runs in the precision of its published users
        (`spec.precision`), elsewhere in float32.

        Raises
        ------
        DataError
            When crops are of another type or shape.

        Examples
        --------
        >>> import numpy as np, sealst as sl
        >>> encoder = sl.models.build_encoder("vit_tiny_patch16_224", pretrained=False)
        >>> encoder.embed(np.zeros((2, 32, 32, 3), dtype=np.uint8)).shape
        (2, 192)
        """
        crops, size = _checked(crops), batch_size or settings.batch_size
        if check_views(views) > 1:
            return over_views(partial(self.embed, batch_size=size), crops, views)
        out = np.empty((len(crops), self.spec.dim), dtype=np.float32)
        with self.inference():
            for start in range(0, len(crops), size):
                z = self(to_images(crops[start : start + size], self.device))
                out[start : start + size] = z.float().cpu().numpy()
        return out

    def patch_tokens(self, crops: np.ndarray, *, views: int = 1, batch_size: int | None = None) -> np.ndarray:
        """What the encoder says of each patch of crops: its last tokens, without class and register tokens.

        Parameters
        ----------
        crops
            uint8, (n, height, width, 3), square.
        views
            Over how many flips and rotations of each crop to average, 1 (as it is) to 8; each is a forward pass.
        batch_size
            Crops per forward pass; default ``settings.batch_size``.

        Returns
        -------
        float32 (n, side, side, width), behind the final norm, deterministic; row by row as the patches lie in the crop.
        An adapter in the blocks has its part in them, a bottleneck behind the encoder has not.

        Raises
        ------
        DataError
            When the encoder is a convolutional network, or crops do not divide into its patches.
        """
        crops, size = _checked(crops), batch_size or settings.batch_size
        self._check_blocks()
        side = crops.shape[1] // self.spec.patch_px
        out = np.zeros((len(crops), side, side, self.spec.width), dtype=np.float32)
        with self.inference():
            for start in range(0, len(crops), size):
                part = slice(start, start + size)
                for code in range(check_views(views)):
                    tokens = self.trunk(to_images(symmetry(crops[part], code), self.device), self.spec.n_blocks)
                    tokens = self.vit.norm(tokens[:, self.spec.n_prefix :])
                    # An attention pooler's norm is of what it pools to.
                    tokens = tokens if "attn" in self.spec.pool else self.vit.fc_norm(tokens)
                    out[part] += turned_back(tokens.float().cpu().numpy().reshape(-1, side, side, out.shape[3]), code)
        return out / np.float32(views)

    def image_model(self, *, crop_px: int | None = None) -> ImageModel:
        """Return the encoder in the form that other tools take; see `sealst.models.ImageModel`.

        Parameters
        ----------
        crop_px
            Side of the images in pixels; by default that of the published users (`spec.input_px`).
        """
        px = self.spec.input_px if crop_px is None else crop_px
        check_positive("crop_px", px)
        return ImageModel(self, name=_named(self, self.state_dict(), px), crop_px=px, mpp=self.spec.native_mpp)

    def train(self, mode: bool = True) -> Encoder:
        """Training mode; batch normalisation keeps the statistics of pretraining."""
        super().train(mode)
        for module in self.backbone.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def __repr__(self) -> str:
        # The layers are in `repr(encoder.vit)`.
        trained = sum(p.numel() for name, p in self.named_parameters() if name in set(self.adapted))
        adapted = f"{trained / 1e6:.2f} M parameters" if self.adapted else "none"
        own = f"  adapted: {adapted}\n  device:  {self.device}"
        return f"{repr(self.spec).replace('EncoderSpec', 'Encoder', 1)}\n{own}"

    def _repr_html_(self) -> str:
        return text_as_html(repr(self))

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Inside a ``with`` block, the encoder is the pretrained one."""
        with ExitStack() as stack:
            if hasattr(self.backbone, "disable_adapter"):
                stack.enter_context(self.backbone.disable_adapter())
            if not self._adapter_off:
                stack.enter_context(self._original_weights())
            before, self._adapter_off = self._adapter_off, True
            try:
                yield
            finally:
                self._adapter_off = before

    @contextmanager
    def _original_weights(self) -> Iterator[None]:
        own = {name: p for name, p in self.vit.named_parameters() if name in self.originals}
        trained = {name: p.data for name, p in own.items()}
        # All copies first: there may be no room for them.
        originals = {name: self.originals[name].to(p.device, p.dtype) for name, p in own.items()}
        try:
            for name, p in own.items():
                p.data = originals[name]
            torch.clear_autocast_cache()
            yield
        finally:
            for name, p in own.items():
                p.data = trained[name]
            torch.clear_autocast_cache()

    def _need_adapter(self) -> None:
        if self._adapter_off:
            raise OrderError("The adapter is switched off here; leave the `with model.frozen_encoder()` block first.")

    def adapted_state(self) -> dict[str, torch.Tensor]:
        """Everything that the adapter trains, by name."""
        self._need_adapter()
        parameters = dict(self.named_parameters())
        return {name: parameters[name].detach() for name in self.adapted}

    def base_state(self) -> dict[str, torch.Tensor]:
        """Pretrained weights under the module's own names, whatever the adapter made of them."""
        own = {k.replace(".base_layer", ""): v for k, v in self.vit.state_dict().items() if "lora_" not in k}
        return own | self.originals

    def trunk_facts(self, n_blocks: int) -> dict[str, Any]:
        """What decides the tokens after the first `n_blocks` blocks, as JSON values; the rest may differ.

        A digest of the weights up to there, and the facts that change what they make of an image.
        """
        used = {k: v for k, v in self.vit.state_dict().items() if not _is_above(k, n_blocks)}
        spec = self.spec.to_dict()
        return {"weights": weights_hash(used), "n_trunk": n_blocks} | {name: spec[name] for name in TRUNK_FEEDING}

    def plain(self) -> Any:
        """A copy of the timm module without adapter, on the CPU; holds trained weights where they have no copy."""
        copied = copy.deepcopy(self.backbone).cpu()
        return copied.unload() if hasattr(copied, "unload") else copied

    def merged(self) -> Any:
        """A copy of the timm module with the adapter merged into its weights, on the CPU."""
        self._need_adapter()
        if self.bottleneck is not None:
            raise DataError(
                "A bottleneck behind the encoder is not linear and cannot be merged into its weights. Save the model "
                "with `model.save`, or train another adapter."
            )
        copied = copy.deepcopy(self.backbone).cpu()
        return copied.merge_and_unload(safe_merge=True) if hasattr(copied, "merge_and_unload") else copied

    def _rotary(self, tokens: torch.Tensor) -> Callable[[int], torch.Tensor] | None:
        """Rotations by which a block's attention knows places, by block; None in networks that add places once."""
        rope = getattr(self.vit, "rope", None)
        if rope is None:
            return None
        n = tokens.shape[1] - self.spec.n_prefix
        if (side := math.isqrt(n)) ** 2 != n:
            raise DataError(f"{self.spec.key!r} knows places of square crops alone, found {n} patches.")
        found = rope.get_embed(shape=(side, side))
        return (lambda i: found[i]) if getattr(self.vit, "rope_mixed", False) else (lambda _: found)

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        """Images with the mean and deviation of the published users taken out."""
        interleaved = images.is_contiguous(memory_format=torch.channels_last)
        if images.device.type != "cpu" or images.dtype != torch.float32 or not interleaved:
            return (images - self.mean) / self.std
        # The same numbers over whole rows of pixels: over three channels at a time it takes four times as long.
        n, _, height, width = images.shape
        rows = images.permute(0, 2, 3, 1).reshape(-1, 3 * width)
        # In memory that numpy asks for, in large pages: torch's, page by page, takes three times as long.
        taken = torch.from_numpy(np.empty(rows.shape, dtype=np.float32))
        torch.sub(rows, self.mean.flatten().repeat(width), out=taken).div_(self.std.flatten().repeat(width))
        return taken.view(n, height, width, 3).permute(0, 3, 1, 2)

    def _behind(self, z: torch.Tensor) -> torch.Tensor:
        return z if self.bottleneck is None or self._adapter_off else self.bottleneck(z)

    def _pooled(self, tokens: torch.Tensor, name: str) -> torch.Tensor:
        if name == "cls":
            return tokens[:, 0]
        if name == "mean":
            return tokens[:, self.spec.n_prefix :].mean(1)
        pooled = self.vit.attn_pool(tokens)
        return self.vit.attn_pool.project(pooled) if name == "attn-proj" else pooled

    def _check_blocks(self) -> None:
        if not self.supports_trunk:
            raise DataError(
                f"{self.spec.key!r} is a convolutional network without blocks: it has no trunk and tail. Call the "
                "encoder on the crops as a whole."
            )


def _checked(crops: np.ndarray) -> np.ndarray:
    """Crops as an array, or an error that says what they must be."""
    crops = np.asarray(crops)
    if crops.ndim != 4 or crops.shape[3] != 3 or crops.dtype != np.uint8:
        raise DataError(f"Crops must be uint8 (n, height, width, 3), found {crops.dtype} {crops.shape}.")
    return crops


def _is_above(name: str, n_blocks: int) -> bool:
    """Whether a parameter of a vision transformer comes after its first blocks."""
    first, _, rest = name.partition(".")
    if first == "blocks":
        return int(rest.partition(".")[0]) >= n_blocks
    return first in ("norm", "fc_norm", "head", "attn_pool")


def weights_hash(state: Mapping[str, torch.Tensor]) -> str:
    """sha256 over names, shapes and values of a state, hex."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(json.dumps([name, list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def base_name(encoder: Encoder) -> str:
    """Name of an encoder without adapter, and 8 digits that change with its pretrained weights and feeding."""
    return _named(encoder, encoder.base_state())


def _named(encoder: Encoder, state: Mapping[str, torch.Tensor], *more: int) -> str:
    facts = (weights_hash(state), encoder.spec.feeding(), *more)
    return f"{plain_key(encoder.spec.key)}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:8]}"


def plain_key(key: str) -> str:
    """Last part of an encoder's name, in characters that a table may have in its name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(key.split(":", 1)[-1]).name).strip("-._")


#: beyond this, values are no colours from 0 to 1, even where a filter has overshot
_LOWEST, _HIGHEST = -0.5, 1.5


class ImageModel(nn.Module):
    """An encoder for tools that cut and feed images themselves.

    Made by `Encoder.image_model` and `SealModel.image_model`. It has what LazySlide asks of an image model and TRIDENT
    of a patch encoder, and needs neither. The weights are those of the model it was made from, not a copy: where one is
    moved, the other goes too.

    Parameters
    ----------
    owner
        Encoder, or SEAL model that holds it.
    name
        See below.
    crop_px, mpp
        Side of the images in pixels, and their µm per pixel (None where unknown).
    frozen
        Whether a SEAL model's adapter is switched off.

    Attributes
    ----------
    name
        Key for tables, unique to weights and feeding.
    crop_px
        Side of the images that it takes, in pixels.
    mpp
        µm per pixel that images should have; None where it is not known.
    precision
        Type in which it runs on CUDA devices; bfloat16 or float32, by the device, where none is published.
    transform
        PIL image or uint8 array (height, width, 3) → float32 (3, crop_px, crop_px) in [0, 1]; can be pickled.

    Examples
    --------
    >>> import numpy as np, sealst as sl
    >>> images = sl.models.build_encoder("vit_tiny_patch16_224", pretrained=False).image_model()
    >>> picture = np.zeros((256, 256, 3), dtype=np.uint8)
    >>> images(images.transform(picture)[None]).shape
    torch.Size([1, 192])
    """

    def __init__(
        self, owner: nn.Module, *, name: str, crop_px: int, mpp: float | None = None, frozen: bool = False
    ) -> None:
        super().__init__()
        # The owner is what `to` moves: a SEAL model must not be torn between devices.
        self._owner: Any = owner
        self.name, self.crop_px, self.mpp, self.frozen = name, crop_px, mpp, frozen
        bf16 = not torch.cuda.is_available() or has_bf16(torch.device("cuda"))
        self.precision: torch.dtype = cuda_dtype(self.model.spec.precision, bf16=bf16)
        self.transform: Callable[[Image.Image | np.ndarray], torch.Tensor] = _Transform(crop_px)

    @property
    def model(self) -> Encoder:
        """The encoder itself."""
        return getattr(self._owner, "encoder", self._owner)

    def get_transform(self) -> Callable[[Image.Image | np.ndarray], torch.Tensor]:
        """`transform`, as LazySlide asks for it."""
        return self.transform

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """Embeddings of transformed images, deterministic and without gradient.

        Parameters
        ----------
        image
            Batch from `transform`, float (n, 3, crop_px, crop_px) in [0, 1], on any device.

        Returns
        -------
        float32 (n, dim), on the CPU.

        Raises
        ------
        DataError
            When the images are of another size, or not in [0, 1].
        """
        self._check(image)
        encoder = self.model
        with encoder.inference(), encoder.without_adapter() if self.frozen else nullcontext():
            # Laid out as crops are, so that sums are taken in the same order.
            laid_out = image.to(encoder.device, torch.float32, non_blocking=True, memory_format=torch.channels_last)
            return encoder(laid_out).float().cpu()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """See `encode_image`."""
        return self.encode_image(image)

    def try_compile(self, **options: Any) -> None:
        """Compile the encoder by `torch.compile`; the first batch is slow then."""
        self.model.compile(**options)

    def _check(self, image: torch.Tensor) -> None:
        wanted = (3, self.crop_px, self.crop_px)
        if image.shape[1:] != wanted or not image.is_floating_point():
            raise DataError(
                f"`image` must be a float batch (n, {', '.join(map(str, wanted))}), found {image.dtype} "
                f"{tuple(image.shape)}. Use the model's own `transform` on each image."
            )
        # Written so that NaN does not pass.
        if image.numel() and not (image.min() >= _LOWEST and image.max() <= _HIGHEST):
            raise DataError(
                f"`image` must have values from 0 to 1, found {image.min():.2f} to {image.max():.2f}. The encoder "
                "subtracts mean and deviation itself: use the model's own `transform`."
            )

    def __repr__(self) -> str:
        scale = "" if self.mpp is None else f" at {self.mpp:g} µm per pixel"
        return (
            f"ImageModel {self.name!r}\n"
            f"  images:  {self.crop_px} px{scale}\n"
            f"  output:  {self.model.spec.dim} values ({self.model.spec.pool})\n"
            f"  runs in: {self.precision}"
        )

    def _repr_html_(self) -> str:
        return text_as_html(repr(self))


@dataclass(frozen=True)
class _Transform:
    """PIL image or uint8 array (height, width, 3) → float32 (3, px, px) in [0, 1], resized as crops are."""

    px: int

    def __call__(self, image: Image.Image | np.ndarray) -> torch.Tensor:
        if not isinstance(image, Image.Image):
            found = f"{getattr(image, 'dtype', type(image).__name__)} {getattr(image, 'shape', '')}".strip()
            if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,):
                raise DataError(f"`image` must be a PIL image or a uint8 array (height, width, 3), found {found}.")
            image = Image.fromarray(image)
        # Tiles that fall between pixels are rounded by one.
        if abs(image.width - image.height) > 1:
            raise DataError(
                f"`image` must be square, found {image.width} x {image.height} px: resizing would distort it. Cut "
                "square tiles."
            )
        image = image.convert("RGB")
        if image.size != (self.px, self.px):
            image = image.resize((self.px, self.px), Image.Resampling.BICUBIC)
        return to_images(np.array(image)[None], torch.device("cpu"))[0]
