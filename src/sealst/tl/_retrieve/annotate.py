"""Labels of crops, voted for by the reference expression profiles that fit their image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sealst import _section
from sealst._core.search.queries import nearest_votes
from sealst._docs import documented
from sealst._errors import DataError
from sealst._keys import Keys
from sealst._logging import logger, warn
from sealst._section import Data, for_writing
from sealst._validate import as_columns, check_key, check_slot, listed
from sealst.models import SealModel
from sealst.tl._embed.inputs import check_model
from sealst.tl._retrieve.retrieve import asked_before, image_embedding

_AUTO = "auto"
# Profiles that are made dense at a time.
_BLOCK = 2**14


@documented
def annotate(
    data: Data,
    model: SealModel,
    reference: Data | Sequence[Data],
    *,
    labels: str,
    n_neighbors: int = 15,
    temperature: float = 0.05,
    balance: bool = False,
    layer: str = _AUTO,
    key: str = Keys.EMBEDDING,
    key_added: str = Keys.ANNOTATION,
    region: str | Sequence[str] | None = None,
    table_key: str = Keys.TABLE,
    copy: bool = False,
) -> Data | None:
    r"""Label crops by the reference expression profiles that fit their image best.

    The gene encoder embeds every labelled profile of the reference. The `n_neighbors` profiles whose embedding is
    nearest to that of a crop's image vote for its label. Measured expression of `data` is not used.

    Parameters
    ----------
    data
        Section(s) with image embeddings of this model, see `sealst.tl.embed`; or their table alone.
    model
        The SEAL model that made the embeddings.
    reference
        Expression with labels, after `sealst.pp.normalize`: a section or single cells (AnnData), or a list of them.
        Genes of the panel that a reference lacks take the panel's mean; half of the panel must be there.
    labels
        Column of ``.obs`` in every reference. Profiles without a label, or without any expression, are left out.
    n_neighbors
        Number of profiles that vote.
    temperature
        Weight of near profiles, see below. The default is the temperature of training; ``inf`` weighs all alike.
    balance
        Whether to weigh labels as if they were equally frequent in the reference. Without it rare labels lose to common
        ones; with it, a single profile of a rare label may win.
    layer
        Layer of the references. ``"auto"`` is the one the model was trained on where a reference has it, else
        ``"lognorm"``, as for single cells, which have no neighbours to take context from.
    %(embeddings.key)s
    key_added
        Column of ``.obs``; the names of the other slots begin with it.
    %(region)s
    table_key
        Table to read from and write to, also of a reference that is a SpatialData.
    copy
        Whether to return a copy of `data` with the result, in place of writing to it.

    Returns
    -------
    None, or with ``copy=True`` a copy of `data`; in the table

    - ``.obs["seal_annotation" | key_added]``: categorical, all labels of the reference are categories; missing for
      spots without a crop and in other regions, but for those that an earlier call labelled alike
    - ``.obs[key_added + "_confidence"]``: float64, share of the vote that the label won, 0 to 1; NaN as above
    - ``.obsm[key_added + "_votes"]``: DataFrame (n_obs, labels), float64, rows sum to 1; NaN as above. ``/`` in a label
      becomes ``_`` in the name of its column, so that the table can be saved
    - ``.uns["sealst"]["annotate"][key_added]``: parameters, per ``label`` its ``n_profiles``, model fingerprint

    Raises
    ------
    OrderError
        When there are no embeddings, another model or other crops made them, or a reference is not normalised.
    MissingKeyError
        When a reference has no such column.
    PanelError
        When a reference lacks half of the panel, or was normalised to another total.
    DataError
        When fewer than two labels or fewer than `n_neighbors` labelled profiles are found, or no spot has an embedding.

    Notes
    -----
    With cosines :math:`s_j` of the nearest profiles :math:`N`, label :math:`c` receives

    .. math:: v_c = \frac{b_c \sum_{j \in N,\, l_j = c} e^{s_j / \tau}}
        {\sum_{c'} b_{c'} \sum_{j \in N,\, l_j = c'} e^{s_j / \tau}}

    where :math:`\tau` is `temperature` and :math:`b_c` is 1, or with `balance` one over the number of profiles of
    label :math:`c`. The share is a vote, not a calibrated probability: check it where labels are known. A spot is a
    mixture of cells, a single cell is none, and a model that was trained on spots has never seen one: labels from spots
    of the same technology are the safer reference. Profiles of the same patient flatter the result.

    Examples
    --------
    >>> sl.tl.embed(sdata, model)  # doctest: +SKIP
    >>> sl.tl.annotate(sdata, model, [labelled_1, labelled_2], labels="region", balance=True)  # doctest: +SKIP
    >>> sdata.tables["table"].obs["seal_annotation"].value_counts()  # doctest: +SKIP
    """
    check_model(model)
    check_slot(key_added)
    table = _section.get_table(data, table_key)
    asked = _section.sections_of(table, region)
    embedding = image_embedding(data, table, asked, model, key)
    if not np.isfinite(embedding[np.concatenate([one.rows for one in asked])]).all(axis=1).any():
        raise DataError("No spot has an embedding; see `.obs['crop_reason']`.")
    z, found, names, layers = _embed_references(
        reference, model, labels=labels, layer=layer, table_key=table_key, table=table
    )
    columns = as_columns(names, what="Labels")
    codes = pd.Categorical(found, categories=names).codes
    options: dict[str, Any] = {"temperature": temperature, "balance": balance}
    options |= {"n_labels": len(names), "n_neighbors": n_neighbors}
    digest = hashlib.sha256(z.tobytes() + codes.tobytes() + "\n".join(names).encode())
    made: dict[str, Any] = {"model": model.fingerprint, "key": key, "question": digest.hexdigest()[:16]}
    made |= {"k": n_neighbors, "temperature": temperature, "balance": balance}
    before = _section.recorded(table, "annotate").get(key_added, {})
    # Sections that the same references labelled before are labelled again, so that they keep what they have.
    regions = [*asked, *asked_before(data, table, asked, before, made)]
    rows = np.concatenate([one.rows for one in regions])
    rows = rows[np.isfinite(embedding[rows]).all(axis=1)]
    votes = nearest_votes(model.shared_images(embedding[rows]), z, codes, **options)
    given, target = for_writing(data, table_key, copy=copy)
    counts = np.bincount(codes, minlength=len(names))
    facts: dict[str, Any] = {"label": np.array(names, dtype=str), "n_profiles": counts, "layers": np.array(layers)}
    facts |= {"labels": labels} | made | {"searched": np.array([one.section for one in regions], dtype=str)}
    values = np.full((target.n_obs, len(names)), np.nan)
    values[rows] = votes
    won = np.full(target.n_obs, -1)
    won[rows] = votes.argmax(axis=1)
    confidence = np.full(target.n_obs, np.nan)
    confidence[rows] = votes.max(axis=1)
    target.obs[key_added] = pd.Categorical.from_codes(won, categories=names)
    target.obs[Keys.related(key_added, "confidence")] = confidence
    shares = pd.DataFrame(values, index=target.obs_names, columns=pd.Index(columns))
    target.obsm[Keys.related(key_added, "votes")] = shares
    _section.record_slot(target, "annotate", key_added, facts)
    counted = pd.Series(np.array(names)[won[rows]]).value_counts()
    logger.info("Wrote .obs[%r]: %s", key_added, ", ".join(f"{name} {n}" for name, n in counted.items()))
    return given if copy else None


def _embed_references(
    reference: Data | Sequence[Data], model: SealModel, *, labels: str, layer: str, table_key: str, table: AnnData
) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Labelled profiles as embeddings (m, dim), the label of each, all labels in order, and the layer per reference."""
    model.panel.require_names()
    items = list(reference) if isinstance(reference, Sequence) else [reference]
    if not items:
        raise DataError("`reference` is empty; pass at least one table with labels.")
    z, found, layers = [], [], []
    seen: dict[str, None] = {}
    for i, item in enumerate(items):
        one = _section.get_table(item, table_key)
        where = "`reference.obs`" if len(items) == 1 else f"`reference[{i}].obs`"
        check_key(one.obs.columns, labels, where=where, hint="Name the column of cell types or regions with `labels=`.")
        column = one.obs[labels].astype("category")
        seen |= dict.fromkeys(str(c) for c in column.cat.categories if (column == c).any())
        trained_on = model.panel.layer if model.panel.layer in one.layers else Keys.LOGNORM
        layers.append(trained_on if layer == _AUTO else layer)
        expressed = np.asarray(abs(_section.lognorm(one, layers[-1])).sum(axis=1)).ravel() > 0
        rows = np.flatnonzero(column.notna().to_numpy() & expressed)
        if len(rows) < one.n_obs:
            logger.info("%d of %d reference profiles have a label and expression", len(rows), one.n_obs)
        shared = one.obs_names[rows].intersection(table.obs_names)
        if len(shared):
            warn(
                f"{len(shared)} spots to be labelled have profiles of the same name in the reference (e.g. "
                f"{listed(shared[:2])}). A spot that votes for its own label says nothing about new tissue."
            )
        z.append(np.empty((len(rows), model.shared_dim), dtype=np.float32))
        # Block by block: single cells are many.
        for start in range(0, len(rows), _BLOCK):
            part = slice(start, start + _BLOCK)
            profiles = _section.expression(one, model.panel, rows[part], layers[-1])
            z[-1][part] = model.shared_genes(model.embed_genes(profiles))
        found.append(column.iloc[rows].astype(str).to_numpy())
    values = np.concatenate(found)
    names = [name for name in seen if name in set(values)]
    if len(names) < 2:
        raise DataError(
            f"`reference.obs[{labels!r}]` holds the label(s) {listed(names)}; at least 2 are needed to choose from."
        )
    return np.concatenate(z), values, names, layers
