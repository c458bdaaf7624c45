"""Learn the expression of single patches from spots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import geopandas as gpd
import numpy as np
import shapely
from spatialdata import SpatialData

from sealst import _logging, _section
from sealst._core.device import resolve_device
from sealst._core.scores.readouts import fit_readout
from sealst._core.scores.reliability import LEAST_SPOTS, SectionScores, score_section
from sealst._core.seeds import mixed_seed
from sealst._core.space.surroundings import patches
from sealst._core.space.token_grid import TokenGrid
from sealst._core.weak_supervision import spot_means, tune_local
from sealst._data.crops.source import iter_source
from sealst._docs import documented
from sealst._errors import DataError
from sealst._keys import Keys
from sealst._logging import logger, warn
from sealst._section import RegionCrops
from sealst._section.cells import tokens_under
from sealst._settings import resolve_seed
from sealst._validate import whole
from sealst.models import SealModel
from sealst.models._local import LocalHead
from sealst.models._seal.reliability import reliability_of
from sealst.pp import check_split
from sealst.tl._embed.inputs import as_sections, check_model
from sealst.tl._evaluate.folds import check_unseen
from sealst.tl._fine.bands import TokenSource, token_source
from sealst.tl._finetune.crossfit import halves
from sealst.tl._finetune.readout import MIN_SPOTS, held_groups

#: spots whose tokens are predicted at a time, all genes of each
_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class _Spots:
    """Some spots of a section: the tokens of their crops that the spot lies on, and what was measured there."""

    section: str
    patient: np.ndarray
    #: (n, side * side, width), float16, and the share of a spot's area on each token of its crop, (side * side,)
    tokens: np.ndarray
    share: np.ndarray
    truth: np.ndarray
    #: which genes the section measures, (genes,)
    known: np.ndarray
    #: x of the spots in µm
    across: np.ndarray
    #: correlation of halves of the counts, (genes,); of sections that are scored
    half: np.ndarray | None = None


@documented
def fit_local(
    sections: SpatialData | Sequence[SpatialData],
    model: SealModel,
    *,
    held_out: SpatialData | Sequence[SpatialData] | None = None,
    epochs: int | None = None,
    max_spots: int = 20_000,
    seed: int | None = None,
    table_key: str = Keys.TABLE,
    device: str | None = None,
    progress: bool | None = None,
) -> None:
    """Teach a model the expression of single patches and cells, from the spots that it was trained on.

    Nothing was measured for a patch of 7 µm. But what was measured in a spot is the sum over what lies under it: each
    of the encoder's patch tokens is given an expression that cannot be negative, and the mean of these over the tokens
    under a spot is compared with the spot (weak supervision). Expression is additive in counts, so that fine maps sum
    to what is predicted for spots. The encoder stays as it is.

    Parameters
    ----------
    sections
        Sections with crops of the model's size and layers, see `sealst.pp.pair_crops` and `sealst.pp.normalize`; the
        model's training sections, as a rule.
    model
        A SEAL model of a vision transformer; what is learned becomes ``model.local``, and is saved with it.
    held_out
        Sections, likewise, of patients that the model has not seen: how well their spots are predicted becomes
        ``model.local.reliability``, which predictions of patches and cells carry (``model.reliability`` is of another
        readout, and says nothing of them). Without them it stays unknown: of sections that the encoder was aligned on
        nothing can be learned about others.
    epochs
        How often every spot is seen; by default so often that there are 300 steps of 64 spots.
    max_spots
        How many spots are learned from at most, spread over all sections. A spot takes some 50 tokens in memory (40 kB
        with a ViT-S).
    seed
        Seed of the order of spots; default ``settings.seed``.
    %(table_key)s
    %(model.device)s
    %(progress)s

    Returns
    -------
    None; sets ``model.local``, which `sealst.tl.predict` needs for ``resolution_um=`` and ``at=``, nothing on error.

    Raises
    ------
    OrderError
        When crops or layers are missing.
    DataError
        When the encoder has no patch tokens, or there are fewer than 50 spots.
    LeakError
        When a patient of `held_out` is one that was trained on, or a section is one of `sections` under another name.

    Notes
    -----
    A token has ``exp(token @ weight + bias)`` counts per 10,000. It begins with a linear readout of the mean token
    under each spot, whose penalties and rank are chosen as for `sealst.tl.finetune`, and goes on by gradient. What
    differs between whole sections is not learned. Programs that the picture does not show cannot be resolved by it,
    whatever the resolution: see ``model.local.reliability``.

    Examples
    --------
    >>> sl.tl.fit_local(sections, model)  # doctest: +SKIP
    >>> sl.tl.predict(sdata, model, genes=["ERBB2", "COL1A1"], resolution_um=16)  # doctest: +SKIP
    """
    check_model(model)
    epochs = None if epochs is None else whole("epochs", epochs, least=1)
    max_spots = whole("max_spots", max_spots, least=MIN_SPOTS)
    given = as_sections(sections, "sections")
    kept = [] if held_out is None else as_sections(held_out, "held_out")
    if kept:
        check_split(given, kept, table_key=table_key)
        unseen = "Hold out sections of other patients, or leave `held_out` out."
        check_unseen(model, _section.parts_of(kept, table_key), hint=unseen)
    if device is not None:
        model.to(resolve_device(device))
    source = token_source(model, None, 1)
    read = partial(_spots_of, model=model, source=source, table_key=table_key, show=progress)
    found = [spots for sdata in given for spots in read(sdata, most=max(1, max_spots // len(given)))]
    n = sum(len(one.truth) for one in found)
    if n < MIN_SPOTS:
        raise DataError(f"Only {n} spots have a usable crop; at least {MIN_SPOTS} are needed.")
    head = _fitted(found, model, epochs=epochs, seed=resolve_seed(seed), show=progress)
    if kept:
        # By map: a variable of a loop would keep a section's tokens while the next one is read.
        parts = map(partial(read, most=max(LEAST_SPOTS, max_spots // len(kept)), scored=True), kept)
        scores = list(chain.from_iterable(_scores(spots, head) for spots in parts))
        if scores:
            head = replace(head, reliability=reliability_of(head.digest, scores, model.panel.genes, by="patient"))
    model.local = head
    logger.info("model.local: %s", model.local.summary())


def _scores(found: Sequence[_Spots], head: LocalHead) -> list[SectionScores]:
    """How well the spots of sections are predicted, as what lies under them."""
    made = []
    for one in found:
        predicted = np.empty_like(one.truth, dtype=np.float32)
        share = one.share / one.share.sum()
        for start in range(0, len(predicted), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            predicted[some] = np.log1p(np.einsum("t,ntg->ng", share, head.counts(one.tokens[some])))
        patient = "/".join(sorted(set(map(str, one.patient))))
        made.append(
            score_section(
                predicted, one.truth, section=one.section, patient=patient, known=one.known, half=one.half,
                seed=_seed(one.section),
            )
        )  # fmt: skip
    return made


def _seed(section: str) -> int:
    return mixed_seed(section) % 2**32


def _spots_of(
    sdata: SpatialData, *, model: SealModel, source: TokenSource, most: int, table_key: str, show: bool | None,
    scored: bool = False,
) -> list[_Spots]:  # fmt: skip
    paired = _section.paired_table(sdata, table_key, trained_on=model.crop)
    table, made = paired.table, []
    for one in paired.sections:
        if scored and len(one.rows) < LEAST_SPOTS:
            warn(f"Section {one.region.section!r} has {len(one.rows)} spot(s) with a usable crop and is not scored.")
            continue
        few = patches(one.centres_um, most)
        rows, boxes = one.rows[few], one.boxes[few]
        # Before any crop is read: there may be no such layer.
        truth = _section.expression(table, model.panel, rows, Keys.LOGNORM, masked=True)
        half = halves(table, model.panel, rows, seed=_seed(one.region.section)) if scored else None
        share = _share(one, source)
        under = np.flatnonzero(share)
        tokens = np.empty((len(few), len(under), source.width), dtype=np.float16)
        with _logging.progress(None, desc="reading tokens of spots", total=len(few), show=show) as bar:
            for positions, crops in iter_source(one.source._replace(boxes=boxes, plain=None), one.crop_px):
                flat = source.tokens(crops).reshape(len(crops), -1, source.width)
                tokens[positions] = flat[:, under]
                bar.update(len(positions))
        made.append(
            _Spots(
                section=one.region.section,
                patient=_section.patients(table, rows),
                tokens=tokens,
                share=share[under],
                truth=truth,
                known=model.panel.measured(table.var_names),
                across=boxes[:, 0],
                half=half,
            )
        )
    return made


def _share(one: RegionCrops, source: TokenSource) -> np.ndarray:
    """Share of a spot's area on each token of its crop, in whose middle it lies, (side * side,)."""
    plane = _section.plane_of(one.sdata, source.crop, image_key=one.definition["image_key"], region=one.region.name)
    outlines = _section.outlines(plane, one.region.name)
    spot = outlines.to_numpy()[len(outlines) // 2]
    centre = shapely.centroid(spot)
    half = plane.side_px / 2
    moved = shapely.transform(spot, lambda xy: xy - [centre.x, centre.y] + half)
    grid = TokenGrid(source.side, 0, plane.side_px / source.side, round(plane.side_px), round(plane.side_px))
    found = tokens_under(gpd.GeoSeries([moved]), grid).toarray().reshape(grid.shape)
    return np.asarray(found[: source.side, : source.side].ravel(), dtype=np.float32)


def _fitted(found: list[_Spots], model: SealModel, *, epochs: int | None, seed: int, show: bool | None) -> LocalHead:
    section = np.repeat(np.arange(len(found)), [len(one.truth) for one in found])
    patient, truth = (np.concatenate([getattr(one, name) for one in found]) for name in ("patient", "truth"))
    known = np.repeat([one.known for one in found], [len(one.truth) for one in found], axis=0)
    most = max(one.tokens.shape[1] for one in found)
    # Spots of some sections may lie on fewer tokens than those of others.
    tokens = np.concatenate([np.pad(one.tokens, ((0, 0), (0, most - one.tokens.shape[1]), (0, 0))) for one in found])
    share = np.concatenate(
        [np.tile(np.pad(one.share, (0, most - len(one.share))), (len(one.truth), 1)) for one in found]
    )
    share /= share.sum(axis=1, keepdims=True)
    mean = spot_means(tokens, share)
    groups, held = held_groups(patient, section, np.concatenate([one.across for one in found]))
    linear = fit_readout(mean, {Keys.LOGNORM: truth}, truth, groups=groups, sections=section, known=known)
    with _logging.progress(None, desc="fitting the local head", show=show) as bar:

        def tick(n: int, total: int) -> None:
            bar.total = total
            bar.update(n)

        weight, bias = tune_local(
            tokens, share, truth, linear.coef, sections=section, known=None if known.all() else known, epochs=epochs,
            seed=seed, device=model.device, tick=tick,
        )  # fmt: skip
    return LocalHead(weight, bias, held, linear.score, len(truth), model.image_fingerprint)
