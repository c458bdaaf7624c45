"""An encoder as other tools want it: with a transform, a name and a precision, for inference alone."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from sealst._core.device import cuda_dtype, has_bf16, to_images
from sealst._errors import DataError
from sealst._html import text_as_html

if TYPE_CHECKING:
    from sealst.models._encoders.encoder import Encoder
    from sealst.models._seal.net import SealNet

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
        self, owner: Encoder | SealNet, *, name: str, crop_px: int, mpp: float | None = None, frozen: bool = False
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
