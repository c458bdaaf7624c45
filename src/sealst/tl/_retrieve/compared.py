"""What a question is compared with: embeddings of crops, or what is predicted of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from anndata import AnnData

from sealst import _section
from sealst._core.search.queries import QUERY_STD, centred, cosine
from sealst._errors import DataError
from sealst._section import Data, Region
from sealst._validate import check_choice
from sealst.models import SealModel
from sealst.tl._retrieve.questions import Question

EXPRESSION, EMBEDDING = "expression", "embedding"
#: kinds of queries that are expression, and those that are raised from a reference
_OF_GENES = ("gene", "signature", "pathway")
_ASKED = (*_OF_GENES, "profile")


def readout_for(
    by: str | None, kind: str, *, n_std: float | None, reference: object, readout: str | None
) -> str | None:
    """Readout by whose predictions a kind of query is compared, see `sealst.tl.retrieve`; None for embeddings.

    `readout` is the one whose programs there are, None where there are none.
    """
    if by is not None:
        check_choice("by", by, (EXPRESSION, EMBEDDING))
    if kind not in _ASKED:
        if by == EXPRESSION:
            raise DataError(f"`by='expression'` is for genes and profiles; a query of kind {kind!r} has no expression.")
        return None
    raised = (("n_std", n_std), ("reference", reference)) if kind in _OF_GENES else ()
    given = [name for name, value in raised if value is not None]
    if by is None:
        return None if given else readout
    if by == EMBEDDING:
        return None
    if readout is None:
        raise DataError(
            "`by='expression'` needs predictions: a model whose readout has programs (trained by this version, on "
            "50 spots or more), and of an index that it was built with `model=`. Without `by` embeddings are compared."
        )
    if given:
        raise DataError(
            f"`{given[0]}` belongs to `by='embedding'`: by expression genes are read out of the prediction, whatever "
            "they are raised from."
        )
    return readout


def length_of(n_std: float | None) -> float:
    """Standard deviations by which a query raises its genes."""
    return QUERY_STD if n_std is None else float(n_std)


def search_readout(data: Data, table: AnnData, model: SealModel, key: str) -> str | None:
    """Readout in whose programs the crops of a table are compared; None where the model has none.

    The same for all regions, asked together or in turn. One that sees the crop alone for tiles without expression, as
    `sealst.tl.predict` does, and where centres of some crops are not known. Embeddings of cells and of expression are
    not what readouts were fitted to.
    """
    if str(_section.recorded(table, "embed").get(key, {}).get("modality", "image")) != "image":
        return None
    seen = np.isfinite(np.asarray(table.obsm[key])).all(axis=1)
    located = all(
        np.isfinite(_section.centres_um(data, table, one)[seen[one.rows]]).all() for one in _section.sections_of(table)
    )
    return model.search_readout if table.n_vars and located else model.crop_search_readout


def similarity_of(
    question: Question,
    model: SealModel,
    embedding: np.ndarray,
    *,
    data: Data,
    table: AnnData,
    regions: Sequence[Region],
    readout: str | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the table that have an embedding, the number of their region, and how similar each is to a question."""
    rows = np.concatenate([one.rows for one in regions])
    groups = np.repeat(np.arange(len(regions)), [len(one.rows) for one in regions])
    known = np.isfinite(embedding[rows]).all(axis=1)
    if question.programs and readout is not None:
        parts = [
            model.image_programs(embedding[one.rows[own]], readout=readout, xy=xy[own])
            for one, xy, own in _located(data, table, regions, embedding)
        ]
        z = np.concatenate(parts) if parts else np.empty((0, len(question.vector)))
        found = cosine(question.vector, z) if question.cosine else z @ question.vector
    else:
        # Pictures are compared with pictures by what the encoder gives, with expression where training aligned them.
        z = embedding[rows[known]]
        z = model.shared_images(z) if question.expression else z
        found = cosine(question.vector, centred(z, groups[known]) if question.shift else z)
    return rows[known], groups[known], found


def _located(
    data: Data, table: AnnData, regions: Sequence[Region], embedding: np.ndarray
) -> list[tuple[Region, np.ndarray, np.ndarray]]:
    """Regions with an embedding, centres of their crops in µm, and which rows have an embedding."""
    found = []
    for one in regions:
        own = np.isfinite(embedding[one.rows]).all(axis=1)
        if own.any():
            found.append((one, _section.centres_um(data, table, one), own))
    return found
