"""Search in an opened index: filters, exact or approximate, and hits that keep their distance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from sealst._core.search.exact import Centring, best_of, top_k
from sealst._core.search.queries import TIE_DECIMALS, spaced_hits
from sealst._core.search.queries import cosine as cosine_of
from sealst._data.index import approximate
from sealst._data.index.vectors import Snapshot
from sealst._errors import CheckpointError, DataError, MissingKeyError
from sealst._validate import listed
from sealst.tl._retrieve.index_write import GROUP, SPREAD, groups_of
from sealst.tl._retrieve.library import FACTS, OBS_NAME, X_UM, Y_UM

Where: TypeAlias = Mapping[str, Any]
#: with what queries are compared
How: TypeAlias = Literal["vectors", "shift", "programs", "sum"]
#: rows and similarities
_Hits: TypeAlias = tuple[np.ndarray, np.ndarray]

#: where no more vectors than this pass a filter, all of them are looked at
_FEW = 50_000
#: candidates per hit wanted of a first search for hits that keep their distance
_SPACED = 4
#: predictions that are compared at once
_ROWS = 65_536


def matching(spots: pa.Table, where: Where, *, name: str) -> np.ndarray:
    """Rows whose columns hold one of the values given, bool (n,)."""
    if not isinstance(where, Mapping):
        raise TypeError(f"`{name}` must map columns to values, e.g. {{'organ': ['breast']}}, found {where!r}.")
    found = np.ones(spots.num_rows, dtype=bool)
    known = [column for column in spots.column_names if column not in (GROUP, SPREAD)]
    for column, wanted in where.items():
        if column not in known:
            raise MissingKeyError(
                f"`{name}`: {column!r} not found in the index's metadata; found: {listed(known, 20)}."
            )
        values = [wanted] if isinstance(wanted, str) or not isinstance(wanted, _LISTS) else list(wanted)
        stored = spots[column]
        number = pa.types.is_floating(stored.type) or pa.types.is_integer(stored.type)
        try:
            values = [float(v) if number else str(v) for v in values]
        except (TypeError, ValueError) as error:
            raise DataError(f"`{name}`: {column!r} holds numbers, found {listed(values)}.") from error
        present = pc.unique(stored).to_pylist()
        if absent := [v for v in values if v not in set(present)]:
            raise DataError(f"`{name}`: no spot has {column} {listed(absent)}; found: {listed(sorted(present))}.")
        type_ = stored.type.value_type if pa.types.is_dictionary(stored.type) else stored.type
        plain = stored.cast(type_) if pa.types.is_dictionary(stored.type) else stored
        found &= pc.is_in(plain, value_set=pa.array(values, type=type_)).to_numpy()
    return found


_LISTS = (list, tuple, set, frozenset, np.ndarray, pd.Index, pd.Series)


def _check_spots(snapshot: Snapshot) -> None:
    """Raise unless the tables of spots have the columns that are read, and name sections that there are."""
    spots, numbers = snapshot.spots, {GROUP: pa.types.is_integer, SPREAD: pa.types.is_floating}
    numbers |= {X_UM: pa.types.is_floating, Y_UM: pa.types.is_floating}
    needed = dict.fromkeys([*FACTS, *snapshot.config["columns"]], lambda _: True) | numbers
    wrong = [n for n, fits in needed.items() if spots.column_names.count(n) != 1 or not fits(spots[n].type)]
    sizes, start = [len(s["sections"]) for s in snapshot.segments], 0
    if not wrong:
        for size, n in zip(sizes, (s["n"] for s in snapshot.segments), strict=True):
            found = pc.min_max(spots[GROUP].slice(start, n)).as_py()
            start += n
            if spots[GROUP].null_count or not 0 <= found["min"] <= found["max"] < size:
                wrong = [GROUP]
    if wrong:
        raise CheckpointError(
            f"The index {str(snapshot.folder)!r} is damaged: columns {listed(wrong)} of its spots are missing, or hold "
            "something else. Restore it from a copy, or build it again."
        )


class Searcher:
    """One state of an index, with what its searches need."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        _check_spots(snapshot)

    @cached_property
    def centring(self) -> Centring:
        """Means of the sections, for directions."""
        spread = self.snapshot.spots[SPREAD].to_numpy()
        return Centring(self.snapshot.means, self.groups, spread)

    @cached_property
    def groups(self) -> np.ndarray:
        """Section of every row."""
        return groups_of(self.snapshot)

    @cached_property
    def xy(self) -> np.ndarray:
        """Positions of all rows in µm."""
        return np.column_stack([self.snapshot.spots[name].to_numpy() for name in (X_UM, Y_UM)])

    def keep(self, where: Where | None, exclude: Where | None) -> np.ndarray | None:
        """Rows that may be found, bool (n,); None for all."""
        found = self.snapshot.kept
        if where is not None:
            chosen = matching(self.snapshot.spots, where, name="where")
            found = chosen if found is None else found & chosen
        if exclude is not None:
            left = ~matching(self.snapshot.spots, exclude, name="exclude")
            found = left if found is None else found & left
        if found is not None and not found.any():
            raise DataError("No spot of the index fits `where` and `exclude` together (or all that did are deleted).")
        return found

    def search(
        self, queries: np.ndarray, k: int, *, keep: np.ndarray | None, suppress_um: float = 0.0, how: How = "vectors"
    ) -> _Hits:
        """Rows of the hits of each query, (q, k), -1 where there are fewer, and their similarities.

        By cosine with ``"vectors"``, with vectors less the mean of their section (``"shift"``) or with predictions in
        programs; or by what a query sums of these (``"sum"``).
        """
        available = len(self.snapshot.vectors) if keep is None else int(keep.sum())
        k = min(k, available)
        if not suppress_um:
            return self._top(queries, k, keep, how)
        lost = np.isnan(self.xy).any(axis=1)
        lost = lost if keep is None else lost & keep
        if lost.any():
            sections = self.snapshot.sections
            names = [sections[i] for i in np.unique(self.groups[lost])]
            raise MissingKeyError(
                f"`suppress_um` needs positions in µm, which section(s) {listed(names)} lacked when they were added: "
                "they had no `.obsm['spatial']` or no crops (`sl.pp.pair_crops`)."
            )
        rows, similarity = self._top(queries, min(available, _SPACED * k), keep, how)
        parts = [
            self._spaced(queries[i], k, keep, suppress_um=suppress_um, how=how, first=(rows[i], similarity[i]))
            for i in range(len(queries))
        ]
        return np.stack([p[0] for p in parts]), np.stack([p[1] for p in parts])

    def _top(self, queries: np.ndarray, k: int, keep: np.ndarray | None, how: How) -> _Hits:
        if how in ("programs", "sum"):
            found = [self._of_programs(query, k, keep, cosine=how == "programs") for query in queries]
            return np.stack([rows for rows, _ in found]), np.stack([similarity for _, similarity in found])
        vectors, kind, shift = self.snapshot.vectors, self.snapshot.config["kind"], how == "shift"
        centring = self.centring if shift else None
        few = keep is not None and int(keep.sum()) <= _FEW
        # Graphs and lists are made of the vectors themselves, not of their differences from a mean.
        if kind == "exact" or self.snapshot.faiss_index is None or shift or few or not len(queries):
            return top_k(queries, vectors, k, keep=keep, centring=centring)
        options = self.snapshot.config["options"]
        some = approximate.candidates(self.snapshot.faiss_index, kind, queries, k, options=options, keep=keep)
        rows, similarity = best_of(queries, vectors, k, candidates=some)
        short = np.flatnonzero((rows < 0).any(axis=1))
        if short.size:
            rows[short], similarity[short] = top_k(queries[short], vectors, k, keep=keep)
        return rows, similarity

    def _of_programs(self, query: np.ndarray, k: int, keep: np.ndarray | None, *, cosine: bool) -> _Hits:
        """Best rows of one query by predictions in programs, of which there are few: all are looked at."""
        predictions = self.snapshot.programs
        if predictions is None:
            raise DataError("The index holds no predictions; build it with `sl.tl.build_index(…, model=model)`.")
        found = np.empty(len(predictions))
        for start in range(0, len(found), _ROWS):
            block = predictions[start : start + _ROWS].astype(np.float64)
            found[start : start + _ROWS] = cosine_of(query, block) if cosine else block @ query
        rows = np.arange(len(found)) if keep is None else np.flatnonzero(keep)
        best = rows[np.argsort(-np.round(found[rows], TIE_DECIMALS), kind="stable")[:k]]
        return best, found[best]

    def _spaced(
        self, query: np.ndarray, k: int, keep: np.ndarray | None, *, suppress_um: float, how: How, first: _Hits
    ) -> _Hits:
        """Best hits of one query, none closer to a better one of its section; searches again for what is missing."""
        hits, scores = np.full(k, -1, dtype=np.int64), np.full(k, np.nan)
        left = np.ones(len(self.snapshot.vectors), dtype=bool) if keep is None else keep.copy()
        n, (rows, similarity) = 0, first
        while n < k:
            rows, similarity = rows[rows >= 0], similarity[rows >= 0]
            chosen = spaced_hits(similarity, self.xy[rows], self.groups[rows], n=k - n, min_um=suppress_um)
            hits[n : n + len(chosen)], scores[n : n + len(chosen)] = rows[chosen], similarity[chosen]
            n += len(chosen)
            left[rows] = False
            for row in rows[chosen]:
                near = np.flatnonzero(self.groups == self.groups[row])
                left[near[np.linalg.norm(self.xy[near] - self.xy[row], axis=1) < suppress_um]] = False
            if n == k or not (available := int(left.sum())):
                break
            found = self._top(query[None], min(available, _SPACED * (k - n)), left, how)
            rows, similarity = found[0][0], found[1][0]
        return hits, scores

    def facts(self, rows: np.ndarray, columns: Sequence[str]) -> pd.DataFrame:
        """Facts on some rows."""
        return self.snapshot.spots.select(list(columns)).take(pa.array(rows)).to_pandas()

    def rows_named(self, name: str) -> np.ndarray:
        """Rows of spots of a name that are not deleted."""
        same = pc.equal(self.snapshot.spots[OBS_NAME], name).to_numpy()
        return np.flatnonzero(same if self.snapshot.kept is None else same & self.snapshot.kept)

    def row_of(self, name: str) -> int:
        """Row of the one spot of a name."""
        rows = self.rows_named(name)
        if not rows.size:
            raise MissingKeyError(
                f"{name!r} not found in the index's `obs_name`. Spots are named '<section>_<spot id>'."
            )
        if rows.size > 1:
            names = [self.snapshot.sections[i] for i in self.groups[rows]]
            raise DataError(f"{name!r} is a spot of {rows.size} sections: {listed(names)}. Search for its embedding.")
        return int(rows[0])
