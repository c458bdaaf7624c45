"""Patch tokens of a whole picture, stitched from overlapping crops, band by band."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from sealst import _section
from sealst._core.space.geometry import CropSpec
from sealst._core.space.token_grid import Band, TokenGrid, stitched
from sealst._core.space.views import N_SYMMETRIES, check_views
from sealst._data.crops.reader import prefetch, read_crops
from sealst._errors import DataError
from sealst._logging import logger, progress
from sealst._section import Plane
from sealst._settings import settings
from sealst.models import Encoder, SealModel
from sealst.models._encoders.encoder import base_name

#: crops that are read at once, at most (or one row of them)
_CROPS = 256
#: tokens that neighbouring crops share in maps of tokens, as a share of a crop's side
OVERLAP = 0.125
#: and where values are what users see: every token is in the inner part of some crop, so that borders do not show; four
#: passes where spots take eight views
SMOOTH_OVERLAP = 0.5


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenSource:
    """What makes tokens of crops: an encoder, adapted or not, and how it is fed."""

    encoder: Encoder
    crop: CropSpec
    views: int
    #: of the model or encoder, for provenance
    facts: dict[str, str]

    @property
    def side(self) -> int:
        """Tokens along a side of a crop."""
        return self.crop.crop_px // self.encoder.spec.patch_px

    @property
    def width(self) -> int:
        """Values of a token."""
        return self.encoder.spec.width

    @property
    def token_um(self) -> float:
        """Side of a token in µm."""
        return self.crop.crop_um / self.side

    def tokens(self, crops: np.ndarray) -> np.ndarray:
        """Tokens (n, side, side, width) of crops."""
        return self.encoder.patch_tokens(crops, views=self.views)


def token_source(model: SealModel | Encoder, crop: CropSpec | None, views: int) -> TokenSource:
    """Tokens of a SEAL model, which knows its crops, or of an encoder, which is told.

    Raises
    ------
    DataError
        When the encoder has no patch tokens, or crops do not divide into its patches.
    """
    if isinstance(model, SealModel):
        encoder, facts, crop = model.encoder, {"model": model.fingerprint}, model.crop
    else:
        encoder = model
        facts = {"model": encoder.spec.key, "fingerprint": base_name(encoder), "pool": encoder.spec.pool}
    if crop is None:
        raise DataError(
            "An encoder does not know which squares it is to see: pass their side in µm, `crop_um=`, or pair crops, "
            "`sl.pp.pair_crops(sdata)`."
        )
    if not encoder.supports_trunk:
        raise DataError(f"{encoder.spec.key!r} is a convolutional network: it has no patch tokens.")
    if crop.crop_px % encoder.spec.patch_px:
        raise DataError(
            f"Crops of {crop.crop_px} px do not divide into patches of {encoder.spec.patch_px} px, so there is no grid "
            "of tokens."
        )
    return TokenSource(encoder=encoder, crop=crop, views=views, facts=facts)


def wanted_tokens(plane: Plane, grid: TokenGrid) -> np.ndarray:
    """Tokens on tissue, as `sl.pp.tissue` found it; all where it has not run, which the log says."""
    found = _section.tissue_tokens(plane, grid)
    if found is not None:
        return found
    logger.info("glass is read, too: `sl.pp.tissue(sdata)` has not found the tissue of %r", plane.image_key)
    return np.ones(grid.shape, dtype=bool)


def n_views(views: int | str) -> int:
    """How many views of each crop to average: as asked; one with ``"auto"``."""
    if views == "auto":
        return 1
    if isinstance(views, str):
        raise DataError(f"`views` must be 'auto' or a number from 1 to {N_SYMMETRIES}, found {views!r}.")
    return check_views(views)


def n_overlap(source: TokenSource, overlap: float) -> int:
    """Tokens that neighbouring crops share, of a share of the crop's side (0 to 0.75)."""
    if isinstance(overlap, bool) or not isinstance(overlap, int | float) or not 0 <= overlap <= 0.75:
        raise DataError(f"`overlap` must be a share of a crop's side from 0 to 0.75, found {overlap!r}.")
    return min(round(overlap * source.side), source.side - 1)


def bands(
    source: TokenSource,
    plane: Plane,
    grid: TokenGrid,
    wanted: np.ndarray,
    function: Callable[[np.ndarray], np.ndarray] | None = None,
    *,
    first: int = 0,
    show: bool | None,
    desc: str,
) -> Iterator[Band]:
    """Stitch what a function says of tokens, for all crops that hold a token that is wanted.

    Parameters
    ----------
    source, plane, grid
        What makes tokens, of which picture, and where its crops lie.
    wanted
        Tokens that are needed, bool of ``grid.shape``.
    function
        Tokens (n, side, side, width) → values (n, side, side, any); by default the tokens themselves.
    first
        Row of crops to go on from, see `stitched`.
    show, desc
        Whether there is a progress bar, and what it says.
    """
    made = (
        (places, tokens if function is None else function(tokens))
        for places, tokens in _read(source, plane, grid, wanted, first, show=show, desc=desc)
    )
    if (head := next(made, None)) is not None:
        yield from stitched(grid, chain([head], made), head[1].shape[-1], first=first)


def portions(
    source: TokenSource,
    plane: Plane,
    grid: TokenGrid,
    wanted: np.ndarray,
    functions: Sequence[tuple[int, Callable[[np.ndarray], np.ndarray]]],
    *,
    first: int = 0,
    show: bool | None,
    desc: str,
) -> Iterator[Iterator[Band]]:
    """As `bands`, of several functions of the same tokens, which are made once.

    For every row of crops the bands of all functions, one after the other: what is in memory is the tokens of the rows
    of crops that reach into one another, and what one function says of them. Nothing of rows without crops.

    Parameters
    ----------
    functions
        Width, and a function as of `bands`.
    """
    batches = _read(source, plane, grid, wanted, first, show=show, desc=desc)
    held: list[tuple[np.ndarray, np.ndarray]] = []
    following = next(batches, None)
    for row in range(first, grid.crops[0]):
        held = [one for one in held if one[0][-1, 0] >= row - grid.n_shared]
        while following is not None and following[0][0, 0] <= row:
            held.append(following)
            following = next(batches, None)
        # A batch may reach into the next row.
        use = [(places[:, 0] >= row - grid.n_shared) & (places[:, 0] <= row) for places, _ in held]
        parts = [(places[k], tokens[k]) for k, (places, tokens) in zip(use, held, strict=True) if k.any()]
        yield (
            next(stitched(grid, ((places, function(tokens)) for places, tokens in parts), width, first=row))
            for width, function in (functions if parts else ())
        )


def places_of(plane: Plane, grid: TokenGrid, wanted: np.ndarray, first: int = 0) -> np.ndarray:
    """Crops (row, column) that are read, row by row, to go on from a row of them."""
    places = grid.holding(wanted)
    places = places[places[:, 0] >= first - grid.n_shared]
    return places[plane.readable(grid.boxes(places))] if len(places) else places


def _read(
    source: TokenSource, plane: Plane, grid: TokenGrid, wanted: np.ndarray, first: int, *, show: bool | None, desc: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places and tokens of crops in batches, row by row."""
    places = places_of(plane, grid, wanted, first)
    if not len(places):
        # What was left to read is glass.
        if first:
            return
        raise DataError(f"Nothing of image {plane.image_key!r} is left to read: no tissue, or no cell, lies on it.")
    levels, px = plane.levels, source.crop.crop_px
    with progress(None, desc=desc, total=len(places), show=show) as bar:
        groups = _by_rows(places, grid.crops[1])
        for some, crops in prefetch(((one, read_crops(levels, grid.boxes(one), px)) for one in groups), depth=1):
            for start in range(0, len(some), settings.batch_size):
                part = slice(start, start + settings.batch_size)
                tokens = source.tokens(crops[part])
                yield some[part], tokens
                bar.update(len(tokens))


def _by_rows(places: np.ndarray, columns: int) -> Iterator[np.ndarray]:
    """Crops in portions of whole rows, as many as are read at once."""
    rows = max(1, _CROPS // columns)
    portion = (places[:, 0] - places[0, 0]) // rows
    for number in np.unique(portion):
        yield places[portion == number]
