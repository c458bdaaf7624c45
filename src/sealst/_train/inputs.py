"""What the image side of training reads: crops, or cached tokens of the frozen blocks."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sealst._core.device import training_autocast
from sealst._data.crops.source import CropSource, fits_memory, gather_crops
from sealst._data.stacked import Stacked
from sealst._data.tokens import (
    Entry,
    Trunk,
    crops_digest,
    in_use,
    is_complete,
    is_finished,
    no_room_advice,
    source_digest,
    stacked_tokens,
    token_bytes,
)
from sealst._errors import DataError
from sealst._logging import logger, progress
from sealst._settings import settings
from sealst._train.params import TrainParams

#: share of the free disk that the cache may take
_DISK_SHARE = 0.9
#: the cache must save this share of the estimated work to be chosen
_WORTH = 0.1

Images = np.ndarray | Stacked


class CropSet(NamedTuple):
    """Crops of the training spots, or of the held-out ones."""

    sources: Sequence[CropSource]
    #: whether augmented views are wanted
    train: bool
    #: for crops that do not fit into memory
    folder: Path

    def __len__(self) -> int:
        return sum(len(source.boxes) for source in self.sources)

    def parts(self) -> list[tuple[CropSource, slice]]:
        """Sources that have any crops, and where these stand among all of the set."""
        ends = np.cumsum([len(source.boxes) for source in self.sources]).tolist()
        found = zip(self.sources, ends, strict=True)
        return [(source, slice(end - len(source.boxes), end)) for source, end in found if len(source.boxes)]

    def read(self, px: int, *, show: bool | None) -> Images:
        """All crops, uint8 (n, px, px, 3)."""
        return gather_crops(self.sources, px, self.folder, show=show)


class CacheCost(NamedTuple):
    """What a trunk cache would save and cost."""

    #: blocks of the encoder, and how many of them come first and are frozen
    n_blocks: int
    n_trunk: int
    #: spots trained on, and held out
    n_train: int
    n_held: int
    #: crops and views whose tokens are not on disk yet, and the bytes they take
    missing: int
    size: int
    #: bytes free where they would go
    free: int
    #: blocks at the end that cost next to nothing: the last, where the class token alone is pooled
    n_light: int = 0


def _bytes(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"


def n_views(params: TrainParams) -> int:
    """Versions of each crop in the cache: without augmentation all are the crop itself."""
    return 1 if params.augmentation == "none" else int(params.views or 1)


def may_cache(params: TrainParams, n_trunk: int) -> bool:
    """Whether a trunk cache comes into question, before its cost is known."""
    if params.cache == "trunk" and n_trunk == 0:
        raise DataError(
            "`params.cache='trunk'`, but there is no frozen trunk: every block is adapted, or the encoder is a "
            "convolutional network. Use 'none'."
        )
    if params.cache != "auto":
        return params.cache == "trunk"
    if n_trunk == 0:
        logger.info("cache = none (no block is frozen)")
        return False
    if n_views(params) == 1 and params.augmentation != "none":
        # A cache of the plain crop alone would silently switch augmentation off.
        logger.info("cache = none (a single view would be the crop without augmentation)")
        return False
    return True


def use_trunk_cache(params: TrainParams, cost: CacheCost) -> bool:
    """Whether to train on cached tokens: on request, or when that is estimated to be less work and there is room.

    Work is counted in blocks per crop: a forward pass is 1, a backward pass 2. An epoch of the plain loop costs L + 2k
    (k of L blocks are adapted), on cached tokens 3k, and making one view L - k. A last block that runs for the class
    token alone counts in neither L nor k.
    """
    room = cost.size <= _DISK_SHARE * cost.free
    if params.cache == "trunk":
        if not room:
            raise DataError(
                f"The trunk cache needs {_bytes(cost.size)}, but the disk of {str(token_root())!r} has "
                f"{_bytes(cost.free)} free, of which a tenth is left alone. {no_room_advice()}"
            )
        return True
    blocks, epochs = cost.n_blocks - cost.n_light, int(params.epochs or 1)
    adapted = max(0, blocks - cost.n_trunk)
    plain = epochs * (cost.n_train * (blocks + 2 * adapted) + cost.n_held * blocks)
    cached = epochs * (3 * cost.n_train + cost.n_held) * adapted + cost.missing * cost.n_trunk
    cheaper = cached < (1 - _WORTH) * plain
    verdict = f"{cached / plain:.0%} of the plain loop's work in {epochs} epochs"
    if not cheaper:
        verdict += ": too little gain"
    elif not room:
        verdict = f"tokens need {_bytes(cost.size)}, but {_bytes(cost.free)} are free; {no_room_advice()}"
    logger.info("cache = %s (%s)", "trunk" if cheaper and room else "none", verdict)
    return cheaper and room


def token_root() -> Path:
    """Folder of all cached tokens."""
    return settings.cache_dir / "tokens"


def _trunk(model: Any, params: TrainParams) -> Trunk:
    device, n_trunk = model.device, model.n_trunk

    def context() -> Any:
        # As the plain loop computes.
        return training_autocast(device, params.precision)

    def run(images: torch.Tensor) -> torch.Tensor:
        with context():
            return model.encoder.trunk(images, n_trunk)

    with context():
        on = torch.is_autocast_enabled(device.type)
        precision = str(torch.get_autocast_dtype(device.type) if on else torch.float32)
    spec = model.encoder.spec
    return Trunk(
        run,
        facts=model.encoder.trunk_facts(n_trunk) | {"precision": precision},
        augmentation=params.augmentation,
        device=device,
        batch_size=settings.batch_size,
        notes={"encoder": spec.key},
    )


def image_inputs(
    model: Any, crop_sets: Sequence[CropSet], params: TrainParams, *, stack: ExitStack, show: bool | None = None
) -> list[Images]:
    """Crops of the training and of the held-out spots, or their cached tokens.

    Parameters
    ----------
    model
        A `SealModel`, in evaluation mode.
    crop_sets
        What to read, in this order.
    params
        With every field filled.
    stack
        Keeps others from removing cached tokens until it is closed.
    show
        Progress bars; None follows the settings.
    """
    px, spec = model.crop.crop_px, model.encoder.spec
    if not may_cache(params, model.n_trunk):
        return [crops.read(px, show=show) for crops in crop_sets]
    trunk, views = _trunk(model, params), n_views(params)

    # Crops where all of them fit into memory, and the entry of every section that has any.
    total = sum(map(len, crop_sets))
    small = fits_memory(total, px)
    kept: list[Any] = [crops.read(px, show=show) if small else None for crops in crop_sets]
    entries: list[list[Entry]] = []
    with progress(None, "reading crops", total=total, show=False if small else show) as bar:
        for crops, pixels in zip(crop_sets, kept, strict=True):
            entries.append([])
            for source, rows in crops.parts():
                n = len(source.boxes)
                if pixels is None:
                    digest = source_digest(source, px, bar=bar)
                else:
                    digest = crops_digest([(slice(None), pixels[rows])], n)
                count = views if crops.train else 1
                entries[-1].append(trunk.entry(token_root(), digest=digest, n=n, px=px, views=count))

    distinct = {entry.key: entry for some in entries for entry in some}
    absent = {key: entry for key, entry in distinct.items() if not is_complete(entry)}
    missing = sum(entry.n * entry.views for entry in absent.values())
    cost = CacheCost(
        n_blocks=spec.n_blocks,
        n_trunk=model.n_trunk,
        n_train=sum(len(crops) for crops in crop_sets if crops.train),
        n_held=sum(len(crops) for crops in crop_sets if not crops.train),
        missing=missing,
        size=token_bytes(missing, 1, (px // spec.patch_px) ** 2 + spec.n_prefix, spec.width),
        free=_free(),
        n_light=model.encoder.n_light,
    )
    if not use_trunk_cache(params, cost):
        return [
            crops.read(px, show=show) if pixels is None else pixels
            for crops, pixels in zip(crop_sets, kept, strict=True)
        ]
    logger.info(
        "trunk cache: %s to write for %d crops x %d views in %s, %s free; %d of %d sections are there",
        _bytes(cost.size), cost.n_train, views, token_root(), _bytes(cost.free), len(distinct) - len(absent),
        len(distinct),
    )  # fmt: skip
    stack.enter_context(in_use(token_root(), distinct.values()))
    with progress(None, "trunk cache", total=cost.missing, show=show if absent else False) as bar:
        for crops, pixels, some in zip(crop_sets, kept, entries, strict=True):
            for entry, (source, rows) in zip(some, crops.parts(), strict=True):
                if entry.key not in absent and is_finished(entry):
                    continue
                # Crops that are not in memory are read section by section and dropped again.
                with tempfile.TemporaryDirectory(dir=crops.folder) as scratch:

                    def read(
                        source: CropSource = source, rows: slice = rows, pixels: Any = pixels, scratch: str = scratch
                    ) -> Any:
                        if pixels is not None:
                            return pixels[rows]
                        return gather_crops([source], px, Path(scratch), show=False)

                    trunk.fill(entry, read, bar=bar)
    return [stacked_tokens([entry.folder for entry in some]) for some in entries]


def _free() -> int:
    settings.cache_dir.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(settings.cache_dir).free
