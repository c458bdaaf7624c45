"""What the image side of training reads: crops, or cached tokens of the frozen blocks."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sealst._core.device import training_autocast
from sealst._data.crops.source import CropSource, fits_memory, gather_crops
from sealst._data.stacked import Stacked
from sealst._data.tokens.store import Entry, is_complete, no_room_advice, stacked_tokens, touch
from sealst._data.tokens.trunk import Trunk, crops_digest, source_digest, token_bytes
from sealst._errors import DataError
from sealst._logging import logger, progress
from sealst._settings import settings
from sealst._train.params import TrainParams

#: share of the free disk that the cache may take
_DISK_SHARE = 0.9
#: the cache must save this share of the estimated work to be chosen
_WORTH = 0.1

Images = np.ndarray | Stacked


class Wanted(NamedTuple):
    """Crops that a run needs."""

    sources: Sequence[CropSource]
    #: whether augmented views are wanted
    train: bool
    #: for crops that do not fit into memory
    folder: Path

    def __len__(self) -> int:
        return sum(len(source.boxes) for source in self.sources)


class CachePlan(NamedTuple):
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


def use_trunk_cache(params: TrainParams, plan: CachePlan) -> bool:
    """Whether to train on cached tokens: on request, or when that is estimated to be less work and there is room.

    Work is counted in blocks per crop: a forward pass is 1, a backward pass 2. An epoch of the plain loop costs L + 2k
    (k of L blocks are adapted), on cached tokens 3k, and making one view L - k. A last block that runs for the class
    token alone counts in neither L nor k.
    """
    room = plan.size <= _DISK_SHARE * plan.free
    if params.cache == "trunk":
        if not room:
            raise DataError(
                f"The trunk cache needs {_bytes(plan.size)}, but the disk of {str(token_root())!r} has "
                f"{_bytes(plan.free)} free, of which a tenth is left alone. {no_room_advice()}"
            )
        return True
    blocks, epochs = plan.n_blocks - plan.n_light, int(params.epochs or 1)
    adapted = max(0, blocks - plan.n_trunk)
    plain = epochs * (plan.n_train * (blocks + 2 * adapted) + plan.n_held * blocks)
    cached = epochs * (3 * plan.n_train + plan.n_held) * adapted + plan.missing * plan.n_trunk
    cheaper = cached < (1 - _WORTH) * plain
    verdict = f"{cached / plain:.0%} of the plain loop's work in {epochs} epochs"
    if not cheaper:
        verdict += ": too little gain"
    elif not room:
        verdict = f"tokens need {_bytes(plan.size)}, but {_bytes(plan.free)} are free; {no_room_advice()}"
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
    model: Any, wanted: Sequence[Wanted], params: TrainParams, *, show: bool | None = None
) -> list[Images]:
    """Crops of the training and of the held-out spots, or their cached tokens.

    Parameters
    ----------
    model
        A `SealModel`, in evaluation mode.
    wanted
        What to read, in this order.
    params
        With every field filled.
    show
        Progress bars; None follows the settings.
    """
    px = model.crop.crop_px
    if not may_cache(params, model.n_trunk):
        return [gather_crops(w.sources, px, w.folder, show=show) for w in wanted]
    trunk, views = _trunk(model, params), n_views(params)
    kept, entries = _entries(trunk, wanted, px, views=views, show=show)
    flat = [entry for some in entries for entry in some]
    distinct = {entry.key: entry for entry in flat}
    absent = {key: entry for key, entry in distinct.items() if not is_complete(entry)}
    plan = _plan(model, wanted, list(absent.values()))
    if not use_trunk_cache(params, plan):
        return [
            gather_crops(w.sources, px, w.folder, show=show) if crops is None else crops
            for w, crops in zip(wanted, kept, strict=True)
        ]
    logger.info(
        "trunk cache: %s to write for %d crops x %d views in %s, %s free; %d of %d sections are there",
        _bytes(plan.size), plan.n_train, views, token_root(), _bytes(plan.free), len(distinct) - len(absent),
        len(distinct),
    )  # fmt: skip
    with progress(None, "trunk cache", total=plan.missing, show=show if absent else False) as bar:
        for w, crops, some in zip(wanted, kept, entries, strict=True):
            _fill(trunk, w, some, absent=absent, crops=crops, px=px, bar=bar)
    touch(distinct.values())
    return [stacked_tokens([entry.folder for entry in some]) for some in entries]


def _plan(model: Any, wanted: Sequence[Wanted], absent: Sequence[Entry]) -> CachePlan:
    spec, px = model.encoder.spec, model.crop.crop_px
    missing = sum(entry.n * entry.views for entry in absent)
    size = token_bytes(missing, 1, (px // spec.patch_px) ** 2 + spec.n_prefix, spec.width)
    n_train, n_held = (sum(len(w) for w in wanted if w.train == train) for train in (True, False))
    light = model.encoder.n_light
    return CachePlan(spec.n_blocks, model.n_trunk, n_train, n_held, missing, size, _free(), n_light=light)


def _free() -> int:
    settings.cache_dir.mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(settings.cache_dir).free


def _filled(w: Wanted) -> list[CropSource]:
    return [source for source in w.sources if len(source.boxes)]


def _slices(w: Wanted) -> list[slice]:
    ends = np.cumsum([len(source.boxes) for source in _filled(w)])
    return [slice(end - len(source.boxes), end) for end, source in zip(ends.tolist(), _filled(w), strict=True)]


def _entries(
    trunk: Trunk, wanted: Sequence[Wanted], px: int, *, views: int, show: bool | None
) -> tuple[list[np.ndarray | None], list[list[Entry]]]:
    """Crops where all of them fit into memory, and the entry of every section that has any."""
    small = fits_memory(sum(map(len, wanted)), px)
    kept: list[Any] = [gather_crops(w.sources, px, w.folder, show=show) if small else None for w in wanted]
    entries = []
    with progress(None, "reading crops", total=sum(map(len, wanted)), show=False if small else show) as bar:
        for w, crops in zip(wanted, kept, strict=True):
            some = []
            for source, rows in zip(_filled(w), _slices(w), strict=True):
                n = len(source.boxes)
                if crops is None:
                    digest = source_digest(source, px, bar=bar)
                else:
                    digest = crops_digest([(slice(None), crops[rows])], n)
                count = views if w.train else 1
                some.append(trunk.entry(token_root(), digest=digest, n=n, px=px, views=count))
            entries.append(some)
    return kept, entries


def _fill(
    trunk: Trunk, w: Wanted, entries: Sequence[Entry], *, absent: dict[str, Entry], crops: Any, px: int, bar: Any
) -> None:
    """Write what is absent; crops that are not in memory are read section by section and dropped again."""
    for entry, source, rows in zip(entries, _filled(w), _slices(w), strict=True):
        if entry.key not in absent:
            continue
        with tempfile.TemporaryDirectory(dir=w.folder) as scratch:

            def read(source: CropSource = source, rows: slice = rows, scratch: str = scratch) -> Any:
                return gather_crops([source], px, Path(scratch), show=False) if crops is None else crops[rows]

            trunk.fill(entry, read, bar=bar)
