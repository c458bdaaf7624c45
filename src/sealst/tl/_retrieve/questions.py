"""Queries of a retrieval as vectors in embedding space."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData

from sealst import _section
from sealst._core.genes.sets import SOURCE, TARGET, WEIGHT, restrict
from sealst._core.search.queries import QUERY_STD, direction, gene_weights, shifted_profiles
from sealst._errors import DataError, MissingKeyError, PanelError
from sealst._logging import logger
from sealst._validate import as_column, check_choice, check_key, listed
from sealst.models import SealModel
from sealst.tl._pathways.pathways import TMIN, Net, gene_set_edges

Query: TypeAlias = str | Sequence[str] | Mapping[str, float] | pd.Series | np.ndarray
Reference: TypeAlias = pd.Series | str | np.ndarray | Mapping[str, Any]


class Spots(Protocol):
    """What is searched, as far as a query needs to know it."""

    @property
    def views(self) -> int:
        """Flips and rotations of a crop that its embeddings are means of."""

    def has_spot(self, name: str) -> bool:
        """Whether a spot has this name."""

    def spot(self, name: str) -> tuple[int, np.ndarray]:
        """Row and embedding of a spot."""


@dataclass(frozen=True)
class Question:
    """A query as a vector in embedding space."""

    label: str
    #: (dim,)
    vector: np.ndarray
    #: whether the vector comes from expression, to be compared in the space that both sides share
    expression: bool = False
    #: whether the vector is a direction from a reference, to be compared with centred embeddings
    shift: bool = False
    #: whether it is to be compared with what is predicted of the crops, in the programs of a readout
    programs: bool = False
    #: whether only its direction matters, or it is what reads a sum of genes out of programs
    cosine: bool = True
    #: row of the spot that asks, or -1
    row: int = -1
    #: what is recorded of it
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """A profile as a reference."""

    #: log1p-CP10k in panel order (genes,); the panel's mean where it has no value
    profile: np.ndarray
    label: str
    #: which genes it has, bool (genes,)
    known: np.ndarray

    @classmethod
    def mean_of(cls, model: SealModel) -> Start:
        """Mean of the training spots."""
        return cls(np.asarray(model.panel.mean, dtype=np.float64), "", np.ones(len(model.panel), dtype=bool))


@dataclass(frozen=True)
class Context:
    """What a query is asked of, and how."""

    model: SealModel
    spots: Spots
    n_std: float
    #: what genes are raised from, or a profile deviates from; None for the panel's mean
    reference: Start | None = None
    net: Net | None = None
    #: readout in whose programs expression is compared with images; None compares embeddings
    readout: str | None = None


def ask(query: Any, kind: str, context: Context) -> Question:
    """Turn a query of a kind into a vector."""
    return _QUESTIONS[kind](query, context)


def kind_of(query: Any, kind: str | None, *, net: bool) -> str:
    """Kind of a query: the one named, or that of its type; with gene sets at hand a name is that of a set."""
    if kind is not None:
        check_choice("kind", kind, tuple(_QUESTIONS))
        if kind == "pathway" and not net:
            raise DataError("`kind='pathway'` needs gene sets: pass `net=`, e.g. a GMT file, see `sl.tl.pathways`.")
        return kind
    if net and isinstance(query, str):
        return "pathway"
    for types, name in _KIND_OF_TYPE:
        if isinstance(query, types):
            return name
    raise TypeError(
        f"`query` must be a gene, a list of genes, a mapping of genes to weights, a Series (profile) or a uint8 array "
        f"(image), found {type(query).__name__}."
    )


def _ask_genes(query: Any, context: Context) -> Question:
    names = [query] if isinstance(query, str) else list(query)
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise DataError(f"A list of genes must hold names, found {listed(wrong, 3)}. Pass a crop as a uint8 array.")
    in_panel = {name.upper() for name in names} <= {gene.upper() for gene in context.model.panel.genes}
    if isinstance(query, str) and not in_panel and context.spots.has_spot(query):
        raise PanelError(f"{query!r} is no gene of the panel but the name of a spot; ask with `kind='spot'`.")
    # A gene listed twice is meant once.
    weights = dict.fromkeys({str(n).strip().upper(): n for n in names}.values(), 1.0)
    try:
        return _ask_signature(weights, context)
    except PanelError as error:
        # With `net` a name is that of a gene set, unless told otherwise.
        hint = " A gene set is asked by its name with `net=`." if isinstance(query, str) and context.net is None else ""
        raise PanelError(f"{error}{hint}") from error


def _ask_signature(query: Any, context: Context) -> Question:
    if not isinstance(query, Mapping | pd.Series):
        raise DataError(f"A signature must map genes to weights, found {type(query).__name__}.")
    model, n_std = context.model, context.n_std
    panel, given = model.panel, dict(query)
    panel.require_names()
    weights = gene_weights(given, panel.genes)
    used = np.flatnonzero(weights)
    genes = [panel.genes[i] for i in used]
    facts: dict[str, Any] = {"genes": np.array(genes, dtype=str), "weights": weights[used]}
    signed = [g if w > 0 else f"-{g}" for g, w in zip(genes, weights[used], strict=True)]
    label = ", ".join(signed[:6]) + (f", … ({len(signed)} genes)" if len(signed) > 6 else "")
    if context.readout is not None:
        vector = reading_vector(model, weights, context.readout)
        return Question(label, vector, expression=True, programs=True, cosine=False, facts=facts)
    start = context.reference or Start.mean_of(model)
    facts |= {"n_std": n_std} | ({"reference": start.label} if start.label else {})
    vector = signature_vector(model, weights, start=start.profile, n_std=n_std)
    return Question(label, vector, expression=True, shift=True, facts=facts)


def reading_vector(model: SealModel, weights: np.ndarray, readout: str) -> np.ndarray:
    """What reads a signature (genes,) of standardised genes out of the programs of a readout, (programs,)."""
    vector = model.programs_of(readout).reading(weights / np.asarray(model.panel.std, dtype=np.float64))
    if not vector.any():
        raise DataError("The model predicts one value everywhere for these genes, so they cannot be asked for.")
    return vector


def signature_vector(
    model: SealModel, weights: np.ndarray, *, start: np.ndarray | None = None, n_std: float = QUERY_STD
) -> np.ndarray:
    """Direction (dim,) in which a profile (default the mean) moves when a signature (genes,) of length 1 is raised."""
    start = model.panel.mean if start is None else start
    profiles = model.embed_genes(shifted_profiles(start, model.panel.std, weights, n_std=n_std))
    return direction(model.shared_genes(profiles))


def _ask_pathway(query: Any, context: Context) -> Question:
    if not isinstance(query, str):
        raise DataError(f"A pathway must be one name of a gene set of `net`, found {type(query).__name__}.")
    edges = gene_set_edges(context.net)
    sets = edges[SOURCE].unique()
    name = query if query in sets else as_column(query)
    if name not in sets:
        near = difflib.get_close_matches(query, sets, n=5, cutoff=0.4)
        raise MissingKeyError(
            f"{query!r} is none of the {len(sets)} gene sets of `net`; near names: {listed(near or sets[:5])}. "
            "For a gene leave out `net`, or say `kind='gene'`."
        )
    mine = edges[edges[SOURCE] == name]
    found = restrict(mine, context.model.panel.genes)
    if found.empty:
        genes = context.model.panel.genes
        raise PanelError(
            f"None of the {len(mine)} genes of {query!r} is in the model's panel of {len(genes)}; its genes begin "
            f"{listed(mine[TARGET], 4)}, the panel {listed(genes, 4)}."
        )
    if len(found) < min(TMIN, len(mine) / 2):
        held = [str(gene) for gene in found[TARGET]]
        raise PanelError(
            f"Only {len(found)} of the {len(mine)} genes of {query!r} are in the model's panel: {listed(held)}. As in "
            f"`sl.tl.pathways` {TMIN} are needed, or half of a small set. Ask for the genes themselves, "
            f"`query={held!r}`, or train with more of the set: `sl.pp.select_genes(sections, include=[...])`."
        )
    logger.info("%s: %d of %d genes are in the panel", query, len(found), len(mine))
    question = _ask_signature(dict(zip(found[TARGET], found[WEIGHT], strict=True)), context)
    return replace(question, label=query, facts=question.facts | {"set_size": len(mine)})


def _ask_profile(query: Any, context: Context) -> Question:
    profile, model = pd.Series(query), context.model
    x, names = profile_in_panel(profile, model), [str(g) for g in profile.index]
    aligned = model.panel.align(names)
    missing = aligned.missing
    shared = len(model.panel) - len(missing)
    name = f"{profile.name}: " if isinstance(profile.name, str) else ""
    facts: dict[str, Any] = {"n_genes": shared} | ({"missing": np.array(missing, dtype=str)} if missing else {})
    label = f"{name}profile of {shared} genes"
    if context.readout is not None:
        start = context.reference or Start.mean_of(model)
        facts |= {"reference": start.label} if start.label else {}
        # Nothing is known of a gene that one of both lacks, so it does not deviate.
        both = (aligned.columns >= 0) & start.known
        deviation = np.where(both, x.astype(np.float64) - start.profile, 0)
        vector = model.programs_of(context.readout).of_profiles(deviation)[0]
        if not vector.any():
            raise DataError("The profile does not deviate from what it is compared with (`reference`, or the mean).")
        return Question(label, vector, expression=True, programs=True, facts=facts)
    return Question(label, model.shared_genes(model.embed_genes(x))[0], expression=True, facts=facts)


def profile_in_panel(profile: pd.Series, model: SealModel) -> np.ndarray:
    """Profile (log1p-CP10k) in panel order, (1, G); absent genes hold the panel's mean."""
    model.panel.require_names()
    how = "Pass log1p-CP10k, e.g. `np.log1p(counts / counts.sum() * 1e4)`."
    if profile.empty:
        raise DataError(f"The profile is empty. {how}")
    values = pd.to_numeric(profile, errors="coerce").to_numpy(dtype=np.float64)
    if (bad := ~(values >= 0) | np.isinf(values)).any():
        raise DataError(
            f"The profile holds {bad.sum()} negative, infinite or missing values, e.g. of "
            f"{str(profile.index[int(np.argmax(bad))])!r}. {how}"
        )
    if not values.any():
        raise DataError(f"The profile is 0 in every gene. {how}")
    ceiling = np.log1p(model.panel.target_sum)
    if values.max() > ceiling * (1 + 1e-6) or (values == np.round(values)).all():
        raise DataError(
            f"The profile looks like counts (highest value {values.max():g}, log1p-CP10k reaches {ceiling:.3g} at most "
            f"and is not made of whole numbers). {how}"
        )
    try:
        return model.panel.extract(values[None], [str(g) for g in profile.index])
    except PanelError as error:
        raise PanelError(
            f"{error} A few weighted genes are a signature: pass a dict, or `kind='signature'`."
        ) from error


def _ask_image(query: Any, context: Context) -> Question:
    model = context.model
    image, px = np.asarray(query), model.crop.crop_px
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise DataError(
            f"An image must be a uint8 array (height, width, 3), found {image.dtype} {image.shape}. Drop an alpha "
            "channel with `image[..., :3]`; genes go into a list."
        )
    if image.shape[:2] != (px, px):
        raise DataError(
            f"The image is {image.shape[1]} x {image.shape[0]} px, the model needs {px} x {px}. It is not resized, "
            f"for its scale is unknown: cut a square of {model.crop.crop_um:g} µm and resize that to {px} px."
        )
    return Question(f"image of {px} x {px} px", model.embed_images(image[None], views=context.spots.views)[0])


def _ask_spot(query: Any, context: Context) -> Question:
    if not isinstance(query, str):
        raise DataError(f"A spot must be one name in `.obs_names`, found {type(query).__name__}.")
    row, vector = context.spots.spot(query)
    return Question(query, vector, row=row)


#: how each kind of query becomes a vector
_QUESTIONS: dict[str, Callable[..., Question]] = {
    "gene": _ask_genes,
    "signature": _ask_signature,
    "pathway": _ask_pathway,
    "profile": _ask_profile,
    "image": _ask_image,
    "spot": _ask_spot,
}
#: the kind that a type of query stands for; the first that fits
_KIND_OF_TYPE: tuple[tuple[Any, str], ...] = (
    (str, "gene"),
    (Mapping, "signature"),
    (pd.Series, "profile"),
    (np.ndarray, "image"),
    ((Sequence, pd.Index), "gene"),
)


def reference_profile(reference: Reference | None, model: SealModel, *, table: AnnData | None = None) -> Start | None:
    """What genes are raised from, or a profile deviates from; None for the panel's mean.

    `reference` is a profile by gene, or spots of the table: a boolean column, a boolean array, or values of columns.
    An index has no `table`.
    """
    if reference is None:
        return None
    if isinstance(reference, pd.Series) and reference.dtype != bool:
        name = reference.name if isinstance(reference.name, str) else "profile"
        known = model.panel.align([str(gene) for gene in reference.index]).columns >= 0
        return Start(profile_in_panel(reference, model)[0].astype(np.float64), name, known)
    if table is None:
        raise DataError(
            "An index holds no expression: `reference` must be a Series of log1p-CP10k by gene, found "
            f"{type(reference).__name__}. Average the spots of a section, or pass its table instead of the index."
        )
    if isinstance(reference, str):
        check_key(table.obs.columns, reference, where="`.obs`", hint="`reference` names a boolean column.")
        mask, name = table.obs[reference].to_numpy(), reference
    elif isinstance(reference, Mapping):
        mask = np.ones(table.n_obs, dtype=bool)
        for column, wanted in reference.items():
            check_key(table.obs.columns, column, where="`.obs`", hint="`reference` maps columns to values.")
            values = [wanted] if isinstance(wanted, str) or not np.iterable(wanted) else list(wanted)
            stored = table.obs[column].astype(str)
            if absent := [v for v in values if str(v) not in set(stored)]:
                raise MissingKeyError(
                    f"`reference`: no spot has {column} {listed(absent)}; found: {listed(sorted(set(stored)))}."
                )
            mask &= stored.isin([str(v) for v in values]).to_numpy()
        name = ", ".join(f"{k}: {v}" for k, v in reference.items())
    elif isinstance(reference, pd.Series):
        # By name, as everything that carries names.
        if not reference.index.equals(table.obs_names):
            raise DataError("A boolean Series as `reference` must have the table's `.obs_names` as its index.")
        mask, name = reference.to_numpy(), "spots"
    else:
        mask, name = np.asarray(reference), "spots"
    if mask.dtype != bool or mask.shape != (table.n_obs,):
        raise DataError(
            f"`reference` must choose spots by True and False, ({table.n_obs},) bool, found {mask.dtype} {mask.shape}."
            " A group of a column is chosen by a mapping, e.g. `{'cluster': 'stroma'}`."
        )
    if not mask.any():
        raise DataError(f"`reference` chooses no spot ({name}).")
    model.panel.require_names()
    values = _section.expression(table, model.panel, np.flatnonzero(mask)).mean(axis=0)
    return Start(np.asarray(values, dtype=np.float64).ravel(), name, model.panel.measured(table.var_names))
