"""Find the crops that fit a gene, a signature, an expression profile, a spot or a picture."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sealst import _section
from sealst._core.search.queries import mean_ranks, spaced_hits
from sealst._docs import documented
from sealst._errors import DataError, OrderError
from sealst._keys import Keys
from sealst._logging import logger, warn
from sealst._section import Data, Region, for_writing, sections_of
from sealst._validate import check_count, check_embedding, check_positive, check_slot, listed
from sealst.models import SealModel
from sealst.tl._embed.inputs import check_model
from sealst.tl._embed.trust import warn_of_genes
from sealst.tl._pathways.pathways import Net
from sealst.tl._retrieve.compared import EMBEDDING, EXPRESSION, length_of, readout_for, search_readout, similarity_of
from sealst.tl._retrieve.index import SealIndex, check_suppress
from sealst.tl._retrieve.index_search import How, Where
from sealst.tl._retrieve.library import embed_hint, positions_um, provenance
from sealst.tl._retrieve.questions import Context, Query, Question, Reference, ask, kind_of, reference_profile


@documented
def retrieve(
    data: Data | SealIndex,
    model: SealModel,
    query: Query,
    *,
    kind: str | None = None,
    by: str | None = None,
    net: Net | None = None,
    reference: Reference | None = None,
    n_std: float | None = None,
    n_hits: int = 10,
    suppress_um: float = 0.0,
    where: Where | None = None,
    key: str = Keys.EMBEDDING,
    key_added: str = Keys.SIMILARITY,
    region: str | Sequence[str] | None = None,
    table_key: str = Keys.TABLE,
    copy: bool = False,
) -> Data | pd.DataFrame | None:
    """Rank spots of a section, or of a library of sections, by how well their image fits a query.

    Parameters
    ----------
    data
        Section(s) with image embeddings of this model, see `sealst.tl.embed`; or their table alone. Measured expression
        is not used, but for `reference`. Or a `SealIndex` of many sections, see `sealst.tl.build_index`.
    model
        The SEAL model that made the embeddings.
    query
        What to look for:

        - a gene, or a list of genes
        - a mapping of genes to weights (a signature or pathway; negative weights for genes that should be low)
        - a Series indexed by gene: a whole profile, log1p-CP10k; genes that are missing take the panel's mean
        - a uint8 array (crop_px, crop_px, 3): a crop of the size the model was trained on
        - with `net` the name of one of its gene sets, whose weights are the signature
        - with ``kind="spot"`` a name in ``.obs_names``: crops that look like that spot's. Where several sections have
          a spot of that name, `region` says which
    kind
        ``"gene"``, ``"signature"``, ``"pathway"``, ``"profile"``, ``"image"`` or ``"spot"``; by default told by the
        type of `query`.
    by
        How genes, signatures, pathways and profiles are compared with crops: ``"expression"``, with what the model's
        readout predicts of each crop; ``"embedding"``, with the crop's embedding, where training aligned the two. By
        default ``"expression"`` where the model has programs (trained by this version), unless, of genes, `n_std` or
        `reference` are given, which belong to embeddings. Spots and images are always compared by embeddings.
    net
        Gene sets, in any form that `sealst.tl.pathways` takes. Genes that the panel lacks are left out;
        a set of which fewer than 5 genes and less than half are left is refused.
    reference
        The profile from which genes are raised (by embedding), or from which a profile deviates (by expression: all
        spots of its own section make it independent of depth and batch); by default the panel's mean. A Series
        indexed by gene (log1p-CP10k), or spots of the table whose measured expression (`sealst.pp.normalize`) is
        averaged: the name of a boolean column of ``.obs``, a boolean array (n_obs,), or a mapping of columns to values
        such as ``{"cluster": "stroma"}``.
    n_std
        By embedding, of genes and signatures: how far the reference profile is moved, in standard deviations of a
        gene; by default 10.
    n_hits
        Hits to record.
    %(suppress_um)s
    where
        Of an index: values that columns of its metadata must have, see `SealIndex.search`.
    %(embeddings.key)s
    key_added
        Column of ``.obs`` with the similarities; the name of the ranks begins with it.
    %(region)s
    %(table_key)s
    copy
        Whether to return a copy of `data` with the result, in place of writing to it.

    Returns
    -------
    None, or with ``copy=True`` a copy of `data`; in the table

    - ``.obs["seal_similarity" | key_added]``: float64, cosine, -1 to 1; of genes by expression what is predicted above
      the mean of the section, in standard deviations of the gene in the model's panel (weights of a signature have
      length 1). NaN for spots without a crop, and in regions that were not asked this. Regions can be asked one by one
    - ``.obs[key_added + "_rank"]``: float64, 1 = most similar of all that were asked this, ties share their mean rank;
      NaN as above
    - ``.uns["sealst"]["retrieve"][key_added]``: query, kind, genes and weights, ``hits`` (names of spots, best first; a
      spot that asks is not its own hit) with their ``sections``, ``regions`` and ``similarities``, model fingerprint.
      Of regions that are asked one by one, the hits of each; ``by`` and, by expression, ``readout``

    Of an index nothing is written: a DataFrame with one row per hit, as of `SealIndex.search`, whose column ``query``
    says in words what was asked, and whose similarity is that of tables.

    Raises
    ------
    OrderError
        When there are no embeddings, or another model or other crops made them.
    PanelError
        When a gene is not in the model's panel, with near names; or the panel's genes have no names.
    DataError
        When the query or `reference` is empty or not what its kind needs, or arguments are for a table and not for an
        index, or the reverse.
    MissingKeyError
        When there is no such spot, gene set or column.

    Notes
    -----
    Spots and images are compared by the cosine of their embedding with that of each crop.

    By expression, a gene or signature is read out of the prediction, less the mean of the section; its unit is the
    deviation over all training spots in the layer of the panel (``model.panel.std``). A profile is
    compared in the *programs* of the readout, the principal components of its predictions within training sections:
    less the reference, and by cosine with predictions less the mean of their section. Both sides have one deviation
    along each program, the root of that of predictions: predictions are timid, and what hardly varies in them says
    little.

    By embedding, profiles are compared by the cosine of embeddings (behind projection heads, where the model has them).
    One gene of 2,000 hardly turns the embedding of a profile, so genes and signatures are a *direction*: the reference
    profile is moved by `n_std` along the standardised signature, both profiles are embedded and normalised, and their
    difference is compared, by cosine, with the normalised image embeddings minus the mean of their section. An index
    keeps the mean of each section as it was added and does the same.

    On her2st (trained on three sections of one patient; 200 genes and 12 signatures; area under the ROC curve against
    the measured top 10 % of spots) expression reached 0.67 and 0.78 on another section of the patient, and 0.59 and
    0.65, 0.57 and 0.65 on two other patients; the direction 0.63 and 0.65, 0.54 and 0.37, 0.54 and 0.61. A crop finds
    its spot's profile among the first ten of its section 8.2, 3.9 and 1.8 times as often as chance by expression, and
    5.0, 1.3 and 1.1 times by embedding (``benchmarks/retrieval_her2st.py``, one seed).

    Examples
    --------
    >>> sl.tl.retrieve(sdata, model, ["CD3E", "MS4A1"], suppress_um=200)  # doctest: +SKIP
    >>> sl.tl.retrieve(sdata, model, "s1_10x14", kind="spot", key_added="like_10x14")  # doctest: +SKIP
    >>> hits = sl.tl.retrieve(index, model, "CD3E", where={"organ": "breast"}, suppress_um=200)  # doctest: +SKIP
    """
    check_model(model)
    check_slot(key_added)
    if n_std is not None:
        check_positive("n_std", n_std)
    check_count("n_hits", n_hits)
    check_suppress(suppress_um)
    n_hits, suppress_um = int(n_hits), float(suppress_um)
    kind = kind_of(query, kind, net=net is not None)
    if isinstance(data, SealIndex):
        if region is not None or copy:
            raise DataError("`region` and `copy` are for tables; an index is filtered with `where={'section': ...}`.")
        if data.model != model.fingerprint:
            raise OrderError(
                f"The index {str(data.path)!r} was made with {data.model!r}, this model is {model.fingerprint!r}. "
                "Embed the sections with this model and build an index of its own, or load the model of the index."
            )
        readout = readout_for(by, kind, n_std=n_std, reference=reference, readout=data.readout)
        start = reference_profile(reference, model)
        question = ask(query, kind, Context(model, data, length_of(n_std), start, net, readout))
        warn_of_genes(model, list(question.facts.get("genes", ())))
        heads = model.projection.kind != "none"
        if heads and data.space == "shared" and kind == "image":
            # A spot's vector comes from the index itself.
            question = replace(question, vector=model.shared_images(question.vector[None])[0])
        elif heads and data.space != "shared" and question.expression and not question.programs:
            raise DataError(
                "The index holds the encoder's embeddings, in which this model's expression has no place: it compares "
                "both behind projection heads. Build it with `sl.tl.build_index(sections, path, model=model)`."
            )
        predicted = readout_for(by, kind, n_std=n_std, reference=reference, readout=model.search_readout)
        if data.readout is None and data.modality == "image" and predicted is not None:
            warn(
                f"The index {str(data.path)!r} holds no predictions, so expression is compared with embeddings, which "
                "finds less. Build it with `sl.tl.build_index(sections, path, model=model)`, or say `by='embedding'`."
            )
        options: dict[str, Any] = {"where": where, "suppress_um": suppress_um}
        found = data.ask(question.vector, n_hits, how=_how(question), row=question.row, **options)
        return found.assign(query=question.label)
    if where is not None:
        raise DataError("`where` filters an index; of a table name `region=`, or pass a part of it.")
    table = _section.get_table(data, table_key)
    asked = sections_of(table, region)
    embedding = image_embedding(data, table, asked, model, key)
    start = reference_profile(reference, model, table=table)
    views = int(_section.recorded(table, "embed").get(key, {}).get("views", 1))
    held = search_readout(data, table, model, key)
    readout = readout_for(by, kind, n_std=n_std, reference=reference, readout=held)
    spots = _TableSpots(table, embedding, asked, views)
    question = ask(query, kind, Context(model, spots, length_of(n_std), start, net, readout))
    warn_of_genes(model, list(question.facts.get("genes", ())))
    made = {"model": model.fingerprint, "key": key, "question": _digest(question)}
    before = _section.recorded(table, "retrieve").get(key_added, {})
    # Sections that were asked the same before are asked again, so that what they have stays and ranks fit together.
    regions = [*asked, *asked_before(data, table, asked, before, made)]
    rows, groups, similarity = similarity_of(
        question, model, embedding, data=data, table=table, regions=regions, readout=readout
    )
    if not (groups < len(asked)).any():
        raise DataError("No spot has an embedding; see `.obs['crop_reason']`.")
    # Rows of the sections that are asked now come first.
    n_asked, xy = int((groups < len(asked)).sum()), None
    if suppress_um:
        of_row = np.full((table.n_obs, 2), np.nan)
        for one in asked:
            of_row[one.rows] = positions_um(table, one)
        xy = of_row[rows[:n_asked]]
        if not np.isfinite(xy).all():
            raise DataError(
                f"`suppress_um` needs the positions of spots, but those in `.obsm[{Keys.SPATIAL!r}]` have gaps or are "
                "not where the spots lie on the image. Store the spots' centres there and run `sl.pp.pair_crops` "
                "again, or leave `suppress_um` out."
            )
    # A spot that asks is the best hit: it keeps near copies of itself away, and is then left out.
    n_wanted = n_hits + (question.row in rows[:n_asked])
    best = spaced_hits(similarity[:n_asked], xy, groups[:n_asked], n=n_wanted, min_um=suppress_um)
    best = best[rows[best] != question.row][:n_hits]
    given, target = for_writing(data, table_key, copy=copy)
    for name, values in ((key_added, similarity), (Keys.related(key_added, "rank"), mean_ranks(similarity))):
        column = np.full(target.n_obs, np.nan)
        column[rows] = values
        target.obs[name] = column
    hits = pd.DataFrame({"hits": target.obs_names[rows[best]].astype(str), "similarities": similarity[best]})
    owners = [regions[group] for group in groups[best]]
    hits = hits.assign(sections=[one.section for one in owners], regions=[one.name for one in owners])
    hits = _with_earlier(hits, before, asked, regions[len(asked) :])
    entry: dict[str, Any] = {"query": question.label, "kind": kind}
    entry |= {"by": EMBEDDING} if readout is None else {"by": EXPRESSION, "readout": readout}
    entry |= made | question.facts | {"suppress_um": suppress_um}
    entry |= {"searched": np.array([one.section for one in regions], dtype=str)}
    entry |= {name: hits[name].to_numpy(dtype=None if name == "similarities" else str) for name in hits}
    _section.record_slot(target, "retrieve", key_added, entry)
    logger.info("Wrote .obs[%r] for %s %r; best: %s", key_added, kind, question.label, listed(hits["hits"], 3))
    return given if copy else None


def _how(question: Question) -> How:
    """What of an index a question is compared with."""
    if question.programs:
        return "programs" if question.cosine else "sum"
    return "shift" if question.shift else "vectors"


def _digest(question: Question) -> str:
    """By what a question is known again, whatever it was made from."""
    vector = np.asarray(question.vector, dtype=np.float32)
    flags = bytes([question.expression, question.shift, question.programs])
    return hashlib.sha256(vector.tobytes() + flags).hexdigest()[:16]


def asked_before(
    data: Data, table: AnnData, asked: Sequence[Region], before: Mapping[str, Any], made: Mapping[str, Any]
) -> list[Region]:
    """Other sections that an earlier call asked just the same (`before` is its record), and that are as they were."""
    if any(str(before.get(name)) != str(value) for name, value in made.items()):
        return []
    now = {(one.name, one.section) for one in asked}
    embedded = _section.recorded(table, "embed").get(str(made["key"]), {})
    same = [
        one
        for one in sections_of(table)
        if "crops" not in embedded or _section.same_crops(table, one, embedded["crops"].get(one.name), data)
    ]
    searched = set(before.get("searched", ()))
    return [one for one in same if one.section in searched and (one.name, one.section) not in now]


def _with_earlier(
    hits: pd.DataFrame, before: Mapping[str, Any], asked: Sequence[Region], others: Sequence[Region]
) -> pd.DataFrame:
    """Hits, best first, with those of sections that were searched one by one; a search of all of them is replaced."""
    if not others or {one.section for one in asked} & set(before["searched"]):
        return hits
    kept = pd.DataFrame({name: list(before[name]) for name in hits})
    kept = kept[kept["sections"].isin([one.section for one in others])]
    return pd.concat([hits, kept]).sort_values("similarities", ascending=False, kind="stable", ignore_index=True)


@dataclass(frozen=True)
class _TableSpots:
    table: AnnData
    embedding: np.ndarray
    sections: Sequence[Region]
    views: int

    def has_spot(self, name: str) -> bool:
        return name in self.table.obs_names

    def spot(self, name: str) -> tuple[int, np.ndarray]:
        row = _section.row_of(self.table, name, self.sections)
        if not np.isfinite(self.embedding[row]).all():
            raise DataError(f"Spot {name!r} has no crop, so no embedding; see `.obs['crop_reason']`.")
        return row, self.embedding[row]


def image_embedding(data: Data, table: AnnData, regions: Sequence[Region], model: SealModel, key: str) -> np.ndarray:
    """Stored image embeddings (n_obs, dim), checked to be this model's and of the present crops."""
    entry, hint = provenance(data, table, regions, key), embed_hint(key)
    if entry["model"] != model.fingerprint:
        raise OrderError(
            f"`.obsm[{key!r}]` was made by {entry['model']!r}, this model is {model.fingerprint!r}. {hint}"
        )
    embedding = np.asarray(table.obsm[key])
    if embedding.ndim != 2 or embedding.shape[1] != model.dim:
        raise DataError(f"`.obsm[{key!r}]` must be (n_obs, {model.dim}), found {embedding.shape}. {hint}")
    check_embedding(embedding, where=f"`.obsm[{key!r}]`")
    return embedding
