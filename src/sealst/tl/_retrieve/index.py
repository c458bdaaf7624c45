"""An index on disk of the embeddings of many sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sealst._data.index.vectors import Snapshot, open_store
from sealst._docs import documented
from sealst._errors import DataError
from sealst._files import absolute
from sealst._html import as_html
from sealst._keys import Keys
from sealst._logging import logger
from sealst._validate import check_count, check_embedding, listed
from sealst.models import SealModel
from sealst.tl._retrieve import index_write as write
from sealst.tl._retrieve.index_search import How, Searcher, Where, matching
from sealst.tl._retrieve.library import FACTS, Sections


class SealIndex:
    """Embeddings of the spots of many sections on disk, to be searched.

    Made by `build_index` and opened by `load`. A folder with the vectors (float32, of length 1), what is known of each
    spot, and maybe a faiss index. Vectors are mapped into memory, so that opening takes no time and only what is looked
    at is read. Changes are safe against crashes: another process, or the next session, finds the index as it was before
    or after. An object goes on to see the state that it opened, or made; `load` again for what others changed.

    Examples
    --------
    >>> index = sl.tl.build_index(sl.io.read_collection("cohort"), "library")  # doctest: +SKIP
    >>> index = sl.tl.SealIndex.load("library")  # doctest: +SKIP
    >>> index.search(vectors, n_hits=20, where={"organ": ["breast"]}, suppress_um=200)  # doctest: +SKIP
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._searcher = Searcher(snapshot)

    @property
    def _snapshot(self) -> Snapshot:
        return self._searcher.snapshot

    @classmethod
    def load(cls, path: str | PathLike[str], *, mmap: bool = True) -> SealIndex:
        """Open an index.

        Parameters
        ----------
        path
            Its folder.
        mmap
            Whether to map the vectors; else they are read into memory.

        Raises
        ------
        CheckpointError
            When there is no index, or it is damaged or of another version.
        """
        return cls(open_store(absolute(path), mmap=mmap))

    # -- what it is ---------------------------------------------------------------------------------------------------
    @property
    def path(self) -> Path:
        """Folder of the index."""
        return self._snapshot.folder

    @property
    def kind(self) -> str:
        """``"exact"``, ``"flat"``, ``"ivf"`` or ``"hnsw"``."""
        return str(self._snapshot.config["kind"])

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._snapshot.config["dim"])

    @property
    def model(self) -> str:
        """Fingerprint of the SEAL model, or name of the encoder, that made the embeddings."""
        return str(self._snapshot.config["made_by"]["model"])

    @property
    def views(self) -> int:
        """Flips and rotations of a crop that its embeddings are means of."""
        return int(self._snapshot.config["made_by"].get("views") or 1)

    @property
    def space(self) -> str:
        """``"encoder"``, or ``"shared"``: vectors behind the model's projection heads, see `build_index`."""
        return write.space_of(self._snapshot)

    @property
    def modality(self) -> str:
        """What was embedded: ``"image"``, or ``"cells"`` or ``"gene"``."""
        return str(self._snapshot.config["made_by"].get("modality") or "image")

    @property
    def readout(self) -> str | None:
        """Readout of the model whose predictions it holds beside embeddings; None where it holds none."""
        facts = self._snapshot.config.get("programs")
        return None if facts is None else str(facts["readout"])

    @property
    def sections(self) -> list[str]:
        """Names of the sections."""
        return write.live_sections(self._snapshot)

    @property
    def n_deleted(self) -> int:
        """Vectors that are deleted, but still on disk until `compact`."""
        kept = self._snapshot.kept
        return 0 if kept is None else int((~kept).sum())

    @property
    def metadata(self) -> pd.DataFrame:
        """What is known of every spot: section, obs_name, patient, organ, technology, x_um, y_um, and more columns."""
        kept = self._snapshot.kept
        rows = np.arange(len(self._snapshot.vectors)) if kept is None else np.flatnonzero(kept)
        return self._searcher.facts(rows, self._columns)

    @property
    def _columns(self) -> list[str]:
        return list(dict.fromkeys([*FACTS, *self._snapshot.config["columns"]]))

    def __len__(self) -> int:
        return len(self._snapshot.vectors) - self.n_deleted

    def __repr__(self) -> str:
        deleted = f", {self.n_deleted:,} deleted" if self.n_deleted else ""
        deleted += f", predictions by {self.readout!r}" if self.readout else ""
        return (
            f"SealIndex of {len(self):,} spots in {len(self.sections)} section(s), {self.dim} dimensions, "
            f"kind {self.kind!r}{deleted}: {str(self.path)!r}"
        )

    def _repr_html_(self) -> str:
        facts = {"spots": f"{len(self):,}", "deleted": f"{self.n_deleted:,}", "sections": listed(self.sections)}
        facts |= {"predictions by": self.readout or "none"}
        facts |= {"dimensions": str(self.dim), "kind": self.kind, "made by": self.model, "folder": str(self.path)}
        return as_html("SealIndex", facts)

    # -- search -------------------------------------------------------------------------------------------------------
    @documented
    def search(
        self,
        vectors: np.ndarray,
        n_hits: int = 50,
        *,
        where: Where | None = None,
        exclude: Where | None = None,
        suppress_um: float = 0.0,
    ) -> pd.DataFrame:
        """Most similar spots to each query, by cosine.

        Parameters
        ----------
        vectors
            Queries, (n_queries, dim) or (dim,), of any length but 0.
        n_hits
            Hits per query; fewer only where fewer spots fit.
        where
            Values that columns of `metadata` must have: ``{"organ": ["breast", "lung"], "technology": "Visium"}``.
        exclude
            Values of columns that leave a spot out, such as ``{"patient": "p1"}``.
        %(suppress_um)s

        Returns
        -------
        DataFrame with one row per hit: query (position in `vectors`), rank (1 = most similar), section, obs_name,
        similarity (-1 to 1), patient, organ, technology, x_um, y_um, and the further columns of the index. Equal
        similarities come in the order of the index. All hits fit the filters; of an index of kind ``"ivf"`` or
        ``"hnsw"`` a few of the best may be missing.

        Raises
        ------
        DataError
            When queries do not fit, or nothing fits the filters.
        MissingKeyError
            When there is no such column, or `suppress_um` is asked and positions are not known.
        """
        queries = self._queries(vectors)
        check_count("n_hits", n_hits)
        check_suppress(suppress_um)
        keep = self._keep(where, exclude)
        found = self._searcher.search(queries, int(n_hits), keep=keep, suppress_um=float(suppress_um))
        return self._hits(*found)

    def has_spot(self, name: str) -> bool:
        """Whether a spot has this name."""
        return self._searcher.rows_named(name).size > 0

    def spot(self, name: str) -> tuple[int, np.ndarray]:
        """Row of a spot, for `ask`, and its vector."""
        row = self._searcher.row_of(name)
        return row, self._snapshot.vectors[row : row + 1][0]

    def ask(
        self,
        vector: np.ndarray,
        n_hits: int,
        *,
        where: Where | None = None,
        suppress_um: float = 0.0,
        how: How = "vectors",
        row: int = -1,
    ) -> pd.DataFrame:
        """Hits of one query as `sealst.tl.retrieve` asks it, see there; as `search` otherwise.

        Parameters
        ----------
        vector
            Query, (dim,); in programs (programs,).
        n_hits, where, suppress_um
            As in `search`.
        how
            What the query is compared with: vectors as they are, by ``"shift"`` those minus the mean of their section,
            by ``"programs"`` predictions, by cosine, or by ``"sum"`` what it sums of predictions.
        row
            Row of the spot that asks, which is not its own hit; -1 for none.
        """
        keep = self._keep(where, None)
        queries = np.asarray(vector, dtype=np.float64)[None] if how in ("programs", "sum") else self._queries(vector)
        # A spot that asks is the best hit: it keeps near copies of itself away, and is then left out.
        itself = row >= 0 and (keep is None or bool(keep[row]))
        rows, similarity = self._searcher.search(queries, n_hits + itself, keep=keep, suppress_um=suppress_um, how=how)
        others = np.flatnonzero((rows[0] != row) & (rows[0] >= 0))[:n_hits]
        return self._hits(rows[:, others], similarity[:, others])

    def _queries(self, vectors: Any) -> np.ndarray:
        queries = np.atleast_2d(np.asarray(vectors, dtype=np.float64))
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise DataError(f"`vectors` must be (n_queries, {self.dim}), found {np.shape(vectors)}.")
        check_embedding(queries, where="`vectors`")
        if not np.isfinite(queries).all() or not (queries != 0).any(axis=1).all():
            raise DataError("`vectors` must be finite and not all 0; leave out spots without an embedding (NaN).")
        return queries

    def _keep(self, where: Where | None, exclude: Where | None) -> np.ndarray | None:
        if not len(self):
            raise DataError(f"The index {str(self.path)!r} is empty: all its spots are deleted. Add sections first.")
        return self._searcher.keep(where, exclude)

    def _hits(self, rows: np.ndarray, similarity: np.ndarray) -> pd.DataFrame:
        query, place = np.nonzero(rows >= 0)
        facts = self._searcher.facts(rows[query, place], self._columns)
        facts.insert(0, "query", query)
        facts.insert(1, "rank", place + 1)
        facts.insert(4, "similarity", similarity[query, place])
        return facts

    # -- changes ------------------------------------------------------------------------------------------------------
    @documented
    def add(self, sections: Sections, *, model: SealModel | None = None, table_key: str = Keys.TABLE) -> None:
        """Add embedded sections.

        Parameters
        ----------
        sections
            As in `build_index`; embeddings of the same model, in the same slot, names of sections that are new.
        model
            The model, for an index that was built with it.
        %(table_key)s

        Raises
        ------
        DataError
            When another process writes to the index, a section is in it, or another model made the embeddings.
        OrderError
            When there are no embeddings, or the model is needed.
        """
        grown = write.add(self.path, sections, table_key=table_key, mmap=self._snapshot.mmap, model=model)
        self._searcher = Searcher(grown)
        unindexed = grown.config["asked"] == "auto" and self.kind == "exact"
        if unindexed and len(self) >= write.AUTO_VECTORS:
            logger.info("%d vectors are searched one by one; `index.compact()` makes an approximate index.", len(self))

    def delete(self, *, where: Where) -> int:
        """Delete the spots whose columns have these values, see `search`; returns how many.

        They are no longer found; `compact` frees their space. The means of sections that `retrieve` subtracts from
        directions stay those of the whole sections.
        """
        if not where:
            raise DataError("`where` names no column; to delete everything remove the folder of the index.")
        choose = lambda snapshot: matching(snapshot.spots, where, name="where")  # noqa: E731
        snapshot, n = write.delete(self.path, choose, mmap=self._snapshot.mmap)
        self._searcher = Searcher(snapshot)
        logger.info("Deleted %d spots from %s", n, self.path)
        return n

    def compact(self) -> None:
        """Write the index anew without deleted spots; of kind ``"auto"`` the size decides again what it is."""
        self._searcher = Searcher(write.compact(self.path, mmap=self._snapshot.mmap))


def check_suppress(suppress_um: float) -> None:
    """Raise unless a distance is finite and at least 0."""
    if not np.isfinite(suppress_um) or suppress_um < 0:
        raise DataError(f"`suppress_um` must be a distance in µm of at least 0, found {suppress_um!r}.")


@documented
def build_index(
    sections: Sections,
    path: str | PathLike[str],
    *,
    key: str = Keys.EMBEDDING,
    kind: str = "auto",
    params: Mapping[str, int] | None = None,
    columns: Sequence[str] = (),
    model: SealModel | None = None,
    table_key: str = Keys.TABLE,
    overwrite: bool = False,
) -> SealIndex:
    """Build an index on disk of embedded sections.

    Sections are read one after the other; of a collection one is open at a time, and vectors go to the disk at once.

    Parameters
    ----------
    sections
        Embedded section(s), see `sealst.tl.embed`: SpatialData, their tables, or a `sealst.io.Collection`. Spots
        without an embedding are left out.
    path
        Folder to write.
    %(embeddings.key)s
    kind
        ``"exact"`` compares with every vector and needs no faiss; ``"flat"`` is faiss' way of the same; ``"ivf"``
        (lists of near vectors) and ``"hnsw"`` (a graph) look at a part. ``"auto"`` is ``"exact"`` below 200,000
        vectors and ``"ivf"`` above.
    params
        For ``"ivf"``: ``n_lists`` (default: by number of vectors) and ``n_probe``, lists that are looked at (32). For
        ``"hnsw"``: ``links`` per vector (16), ``ef_construction`` (40) and ``ef_search`` (200).
    columns
        Further columns of ``.obs`` to keep, for filters and in hits.
    model
        The model that made the embeddings, if genes, signatures or profiles will be asked for: the index then holds
        what the model predicts of each spot, too (a few numbers, its programs, see `sealst.tl.retrieve`), and what its
        projection heads make of embeddings. Without it the index holds embeddings alone, with which expression is
        compared less well, and not at all behind projection heads. All sections are predicted by the readout that the
        first of them is searched by: tiles without expression by one that sees the crop alone.
    %(table_key)s
    overwrite
        Whether to replace an index that is there; it stays until the new one is complete.

    Returns
    -------
    The `SealIndex`.

    Raises
    ------
    OrderError
        When a section has no embeddings, or its crops have changed since.
    DataError
        When different models (or slots, or crop sizes) made them, two sections have the same name, another process
        writes to the folder, or faiss is needed and not installed (``pip install "sealst[index]"``).
    CheckpointError
        When the folder holds an index and `overwrite` is False, or holds other files.

    Examples
    --------
    >>> sections = sl.io.read_collection("cohort")  # doctest: +SKIP
    >>> sections.apply(lambda sdata: sl.tl.embed(sdata, model))  # doctest: +SKIP
    >>> index = sl.tl.build_index(sections, "library", columns=["stage"], model=model)  # doctest: +SKIP
    >>> sl.tl.retrieve(index, model, ["CD3E", "MS4A1"], where={"organ": "breast"})  # doctest: +SKIP
    """
    if isinstance(columns, str):
        raise DataError(f"`columns` must be a list of names, found {columns!r}; use [{columns!r}].")
    if taken := sorted({"query", "rank", "similarity"} & set(columns)):
        raise DataError(f"`columns` {listed(taken)} would stand twice in tables of hits; rename them in `.obs`.")
    snapshot = write.build(
        sections,
        path,
        key=key,
        kind=kind,
        params=params,
        columns=columns,
        table_key=table_key,
        overwrite=overwrite,
        model=model,
    )
    index = SealIndex(snapshot)
    logger.info("Built %r", index)
    return index
