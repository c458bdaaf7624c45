"""Learning curves: parts of the training side of a fold, and what was scored after learning from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from sealst import _section
from sealst._core.seeds import mixed_seed
from sealst._errors import DataError
from sealst._logging import logger
from sealst._section import Part
from sealst._validate import check_count, positive_numbers
from sealst.pp import Split
from sealst.tl._evaluate.cohorts import BenchCohort, Cohort
from sealst.tl._evaluate.views import SectionView
from sealst.tl._finetune.finetune import MIN_SPOTS

#: what a mean over sections is taken for
_KEYS = ["method", "metric", "genes"]
#: a share times a number of things may fall short of a whole number by rounding
_ROUNDING = 1e-9


@dataclass(frozen=True)
class TrainPart:
    """A part of the training side of a fold."""

    fraction: float
    draw: int
    #: the fold with this part alone to train on
    fold: Split

    @property
    def key(self) -> tuple[tuple[str, int], ...]:
        """What tells parts of one fold apart."""
        return tuple(sorted((name, hash(frozenset(map(str, spots)))) for name, spots in self.fold.train.items()))


@dataclass(frozen=True)
class Fractions:
    """Which parts of the training sides of folds are learned from."""

    #: below 1, rising
    shares: Sequence[float]
    n_draws: int
    seed: int

    def plan(self, cohort: Cohort, folds: Sequence[Split]) -> dict[str, list[TrainPart]]:
        """Parts of every fold by its name, drawn before anything is trained."""
        if not self.shares:
            return {}
        if isinstance(cohort, BenchCohort):
            raise DataError(
                "`train_fractions` leaves out patients first, and the files of HEST-bench do not name any. Read the "
                "samples of HEST-1k with `sl.io.read_hest`."
            )
        parts = {part.section: part for part in cohort.parts()}
        patients = {
            name: pd.Series(_section.patients(part.table, part.rows), index=part.obs_names)
            for name, part in parts.items()
        }
        return {fold.name: self._parts(fold, parts, patients) for fold in folds}

    def _parts(self, fold: Split, parts: Mapping[str, Part], patients: Mapping[str, pd.Series]) -> list[TrainPart]:
        # What is drawn depends neither on the order of the call nor on the other folds.
        units: dict[str, dict[str, np.ndarray]] = {}
        for name in sorted(fold.train):
            spots = np.asarray(fold.train[name])
            for patient in (own := patients[name].loc[spots]).unique():
                units.setdefault(str(patient), {})[name] = spots[(own == patient).to_numpy()]
        found: list[TrainPart] = []
        for share in self.shares:
            known = set()
            for draw in range(self.n_draws):
                train = self._drawn(units, share, draw, fold.name, parts)
                part = TrainPart(share, draw, replace(fold, train=train, name=_name(fold, share, draw)))
                # Of two patients only two can be drawn.
                if part.key not in known:
                    found.append(part)
                known.add(part.key)
                _check_enough(part, fold)
        return found

    def _drawn(
        self,
        units: Mapping[str, Mapping[str, np.ndarray]],
        share: float,
        draw: int,
        fold: str,
        parts: Mapping[str, Part],
    ) -> dict[str, np.ndarray]:
        """Spots by section. A larger share of one draw holds all that a smaller one does."""
        order = self._order(sorted(units), draw, fold)
        wanted = share * len(order)
        if wanted >= 1 - _ROUNDING:
            chosen = order[: int(wanted + _ROUNDING)]
            together: dict[str, list[np.ndarray]] = {}
            for patient in chosen:
                for name, spots in units[patient].items():
                    together.setdefault(name, []).append(spots)
            return {name: np.concatenate(together[name]) for name in sorted(together)}
        sections = units[order[0]]
        names = self._order(sorted(sections), draw, fold, order[0])
        wanted *= len(names)
        if wanted >= 1 - _ROUNDING:
            return {name: sections[name] for name in sorted(names[: int(wanted + _ROUNDING)])}
        name = names[0]
        return {name: self._strip(parts[name], sections[name], wanted, draw, fold)}

    def _order(self, names: list[str], draw: int, *facts: str) -> list[str]:
        """Names in an order in which every draw begins with another one, as long as there are others."""
        turn, first = divmod(draw, len(names))
        rng = np.random.default_rng(mixed_seed(self.seed, *facts, turn))
        return np.roll(rng.permutation(np.array(names, dtype=object)), -first).tolist()

    def _strip(self, part: Part, spots: np.ndarray, share: float, draw: int, fold: str) -> np.ndarray:
        """One side of a section: spots keep their neighbours, and a smaller piece of tissue is what is measured."""
        centres = _section.spot_table(part.data, part).geometry.centroid
        xy = pd.DataFrame({"x": centres.x.to_numpy(), "y": centres.y.to_numpy()}, index=part.obs_names).loc[spots]
        first = np.random.default_rng(mixed_seed(self.seed, fold, part.section)).uniform(0, 2 * np.pi)
        angle = first + 2 * np.pi * draw / self.n_draws
        along = xy.to_numpy(dtype=float) @ [np.cos(angle), np.sin(angle)]
        kept = np.argsort(along, kind="stable")[: int(share * len(spots) + _ROUNDING)]
        return spots[np.sort(kept)]


def _name(fold: Split, share: float, draw: int) -> str:
    return f"{fold.name}, {share:g} of the training side, draw {draw}"


def _check_enough(part: TrainPart, fold: Split) -> None:
    n, whole = (sum(map(len, one.train.values())) for one in (part.fold, fold))
    if n < MIN_SPOTS:
        raise DataError(
            f"`train_fractions`: {part.fraction:g} of the {whole} training spots of fold {fold.name!r} are {n}; at "
            f"least {MIN_SPOTS} are needed. Name larger fractions."
        )


def fractions_of(given: Sequence[float] | None, n_draws: int, seed: int) -> Fractions:
    """Check what was asked for."""
    check_count("n_draws", n_draws)
    if given is None:
        return Fractions((), int(n_draws), seed)
    example = "name shares of the training side above 0 and up to 1, such as [0.25, 0.5, 1]"
    shares = positive_numbers("train_fractions", given, example=example)
    if wrong := [share for share in shares if share > 1]:
        raise DataError(f"`train_fractions` holds {_numbers(wrong)}; {example}.")
    below = sorted(share for share in shares if share < 1)
    if not below:
        raise DataError(f"`train_fractions` has none below 1 to compare with, found {_numbers(shares)}; {example}.")
    return Fractions(below, int(n_draws), seed)


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{one:g}" for one in values)


def counted(seen: Sequence[SectionView]) -> dict[str, int]:
    """How much was learned from."""
    patients = {str(patient) for view in seen for patient in np.unique(view.patients)}
    return {"n_patients": len(patients), "n_sections": len(seen), "n_spots": sum(map(len, seen))}


def curve_rows(table: Sequence[Mapping[str, Any]], n: Mapping[str, int], **facts: Any) -> pd.DataFrame:
    """One row per method, gene set and metric of a fold: the mean over its sections, or where it has none, the fold's.

    Parameters
    ----------
    table
        Rows of the evaluation, of one fold and seed.
    n
        See `counted`.
    facts
        Further columns.
    """
    rows = pd.DataFrame(table)
    single = rows[rows["section"] != ""]
    rows = pd.concat([single, rows[~rows["metric"].isin(single["metric"].unique())]])
    means = rows.groupby(_KEYS, sort=False, observed=True)["value"].mean().reset_index()
    return means.assign(**facts, **n)


def learned(
    parts: Sequence[TrainPart],
    score: Callable[[TrainPart], tuple[Sequence[Mapping[str, Any]], Mapping[str, int]]],
    **facts: Any,
) -> list[pd.DataFrame]:
    """Rows of all parts of a fold; those that two fractions have in common are learned from once."""
    done: dict[Any, tuple[Sequence[Mapping[str, Any]], Mapping[str, int]]] = {}
    found = []
    for part in parts:
        if part.key in done:
            logger.info("%s: the same spots as of a smaller fraction", part.fold.name)
        else:
            done[part.key] = score(part)
        rows, n = done[part.key]
        found.append(curve_rows(rows, n, fraction=part.fraction, draw=part.draw, **facts))
    return found


def joined(found: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Rows of all folds, by fraction; empty where nothing was asked for."""
    if not found:
        return pd.DataFrame()
    order = ["fraction", "n_patients", "n_sections", "n_spots", "fold", "draw", "seed", *_KEYS, "value"]
    return pd.concat(found, ignore_index=True)[order].sort_values("fraction", kind="stable", ignore_index=True)
