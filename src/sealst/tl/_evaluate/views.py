"""One section as every method of an evaluation sees it: features of its crops, expression of its spots."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from anndata import AnnData
from spatialdata import SpatialData

from sealst import _section
from sealst._core.device import to_images
from sealst._core.genes.panel import GenePanel
from sealst._core.space.views import over_views
from sealst._data.arena import Arena
from sealst._errors import DataError
from sealst._keys import Keys
from sealst._logging import logger
from sealst._section import RegionCrops
from sealst._validate import check_key
from sealst.models import CropSpec, Encoder, SealModel

#: features of the base encoder, and of its crops' colours
FROZEN, COLOUR = "frozen", "colour"
#: the model under test
SEAL = "seal"
#: fields of a view that hold arrays of numbers by name
_BY_NAME = ("features", "shared", "codes", "fields")
#: bytes of tokens that are kept, all sections together; and of views, beyond which they lie in files
ROOM = 2 * 2**30


@dataclass(frozen=True, eq=False)
class SectionView:
    """Spots of one section that have a crop, in the order of the table."""

    name: str
    organ: str
    technology: str
    #: names of the spots, and their patients, (n,)
    spots: np.ndarray
    patients: np.ndarray
    #: positions in µm (of HEST-bench in pixels), (n, 2); NaN where unknown
    xy: np.ndarray
    #: whether they are in µm
    in_um: bool
    #: by name: ``"frozen"``, ``"colour"``, and a model's own
    features: dict[str, np.ndarray]
    #: by model, image and gene embeddings where the two are compared; the base encoder's under ``"frozen"``
    shared: dict[str, np.ndarray]
    codes: dict[str, np.ndarray]
    #: expression of the scored genes in the protocol's unit, (n, genes)
    measured: np.ndarray
    #: bool (genes,): which of them the section measures
    known: np.ndarray
    #: expression of the model's panel as its gene encoder sees it, (n, panel); empty without a model
    context: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    #: by name as in `features`, those of several fields of view side by side; empty where a model sees one
    fields: dict[str, np.ndarray] = field(default_factory=dict)
    #: by column of ``.obs``, values as text, (n,); empty where a spot has none
    labels: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.spots)

    @property
    def patient(self) -> str:
        """Its patient, or several in one text."""
        return ", ".join(np.unique(self.patients))

    def search_readout(self, model: SealModel) -> str | None:
        """Readout by which a model's predictions are compared here: of the crop alone where there are no distances."""
        return model.search_readout if self.in_um else model.crop_search_readout

    def take(self, names: Sequence[str] | np.ndarray) -> SectionView:
        """SectionView of some of its spots."""
        kept = np.flatnonzero(np.isin(self.spots, np.asarray(names)))
        if len(kept) == len(self.spots):
            return self
        parts: dict[str, Any] = {
            key: {k: v[kept] for k, v in getattr(self, key).items()} for key in (*_BY_NAME, "labels")
        }
        context = self.context[kept] if len(self.context) else self.context
        parts |= {name: getattr(self, name)[kept] for name in ("spots", "patients", "xy", "measured")}
        return replace(self, context=context, **parts)

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays of numbers."""
        parts = [*(v for key in _BY_NAME for v in getattr(self, key).values()), self.measured, self.context]
        return sum(part.nbytes for part in parts)

    def kept_in(self, arena: Arena) -> SectionView:
        """The same, with its arrays in files."""
        parts: dict[str, Any] = {key: {k: arena.keep(v) for k, v in getattr(self, key).items()} for key in _BY_NAME}
        return replace(self, measured=arena.keep(self.measured), context=arena.keep(self.context), **parts)


class TrunkMemory:
    """Tokens by trunk and crops, kept between folds, seeds and methods of an evaluation until `room` bytes are full.

    They are kept as they were made: nothing is rounded, so results are those without it.
    """

    def __init__(self, room: int = ROOM) -> None:
        self._room = room
        self._kept: dict[tuple[str, bytes], torch.Tensor] = {}

    def tokens(self, trunk: str, crops: np.ndarray, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Tokens of a batch of crops behind a trunk (see `trunk_key`), from `make` where they are not kept."""
        name = trunk, hashlib.blake2b(np.ascontiguousarray(crops).data, digest_size=16).digest()
        if name in self._kept:
            return self._kept[name]
        made = make()
        if made.nbytes <= self._room:
            self._room -= made.nbytes
            self._kept[name] = made.cpu()
        return made


def trunk_key(model: SealModel) -> str:
    """Digest of all that decides the tokens in front of a model's first adapted block; empty where it has no trunk."""
    if not (n := model.n_trunk):
        return ""
    facts = model.encoder.trunk_facts(n) | {"precision": model.encoder.spec.precision, "device": str(model.device)}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class ModelFeatures:
    """Features of one or more models on one base encoder; the first is shown frozen too.

    A trunk that several models have in common, or that `memory` knows these crops of, runs once.
    """

    def __init__(self, models: Mapping[str, SealModel], memory: TrunkMemory | None = None, *, views: int = 1) -> None:
        self.models, self.memory, self.views = dict(models), memory or TrunkMemory(room=0), views
        first = next(iter(self.models.values()))
        self.widths = {FROZEN: first.dim} | {name: m.dim for name, m in self.models.items()} | {COLOUR: 6}
        # One model that sees its crops once has nothing to share, and its weights need no digest.
        shares = memory is not None or len(self.models) > 1
        self._trunks = {name: trunk_key(model) if shares else "" for name, model in self.models.items()}

    def __call__(self, crops: np.ndarray) -> np.ndarray:
        """Features (n, sum of widths) of crops, side by side, each the mean over views."""
        return over_views(self._of_one_view, crops, self.views)

    def _of_one_view(self, crops: np.ndarray) -> np.ndarray:
        parts: list[np.ndarray] = []
        behind: dict[str, torch.Tensor] = {}
        for name, model in self.models.items():
            trunk = self._trunks[name]
            if trunk and trunk not in behind:
                behind[trunk] = self.memory.tokens(trunk, crops, partial(model.trunk_tokens, crops))
            if not parts:
                parts += model.embed_both(crops, tokens=behind.get(trunk))
            elif trunk:
                parts.append(model.embed_tokens(behind[trunk]))
            else:
                parts.append(model.embed_images(crops, batch_size=len(crops)))
        return np.concatenate([*parts, _colour(crops)], axis=1)


class EncoderFeatures:
    """Features of an encoder as it is."""

    def __init__(self, encoder: Encoder, device: torch.device, *, views: int = 1) -> None:
        self.encoder, self.views = encoder.to(device), views
        self.widths = {FROZEN: encoder.spec.dim, COLOUR: 6}

    def __call__(self, crops: np.ndarray) -> np.ndarray:
        """Features (n, sum of widths) of crops, side by side."""
        return np.concatenate(
            [self.encoder.embed(crops, views=self.views, batch_size=len(crops)), _colour(crops)], axis=1
        )


#: turns crops into the features of every method
Extractor: TypeAlias = ModelFeatures | EncoderFeatures


def _colour(crops: np.ndarray) -> np.ndarray:
    images = to_images(crops, torch.device("cpu"))
    return torch.cat([images.mean((2, 3)), images.std((2, 3))], dim=1).numpy()


@dataclass(frozen=True)
class SectionReader:
    """Makes views of sections, with the features and genes of one fold."""

    extract: Extractor
    models: Mapping[str, SealModel]
    genes: GenePanel
    target: str
    crop: CropSpec
    table_key: str
    show: bool | None
    #: further fields of view, in µm
    wider: Sequence[float] = ()
    #: columns of ``.obs`` that are kept of every spot
    labels: Sequence[str] = ()

    def read(self, sdata: SpatialData) -> Iterator[SectionView]:
        """Views of all sections that a SpatialData holds."""
        paired = _section.paired_table(sdata, self.table_key, trained_on=self.crop)
        for one in paired.sections:
            if not one.usable.any():
                raise DataError(f"Section {one.region.section!r} has no usable crop; see `.obs['crop_reason']`.")
            rows, values, _ = _section.map_crops([one], self.extract, show=self.show, desc=one.region.section)
            table = paired.table
            facts: dict[str, Any] = {"name": one.region.section, "patients": _section.patients(table, one.rows)}
            facts |= {"xy": one.centres_um, "in_um": True}
            for label in (Keys.ORGAN, Keys.TECHNOLOGY):
                facts[label] = str(table.obs[label].iloc[one.rows[0]]) if label in table.obs else ""
            view = self.view_of(table, rows, values, facts=facts)
            yield replace(view, fields=self._fields(one, view.features)) if self.wider else view

    def _fields(self, crops: RegionCrops, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """By name, features of the crops beside those of wider squares about the same centres."""
        parts = [dict(features)]
        for um in self.wider:
            label = f"{crops.region.section}, {um:g} µm"
            _, values, _ = _section.map_crops([crops.widened(um)], self.extract, show=self.show, desc=label)
            parts.append(self._by_name(values))
        return {name: np.hstack([part[name] for part in parts]) for name in features if name != COLOUR}

    def _by_name(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Features (n, width) of every name from all of them side by side."""
        ends = np.cumsum(list(self.extract.widths.values()))[:-1]
        return dict(zip(self.extract.widths, np.split(values, ends, axis=1), strict=True))

    def view_of(self, table: AnnData, rows: np.ndarray, values: np.ndarray, *, facts: Mapping[str, Any]) -> SectionView:
        """SectionView from features of some rows of a table."""
        codes, context = {}, np.empty((0, 0))
        for name, model in self.models.items():
            if model.panel.layer not in table.layers and self.target != "lognorm":
                # Spots without neighbours have no context; probes do not need it.
                continue
            profile = _section.expression(table, model.panel, rows, masked=True)
            codes[name] = model.shared_genes(model.embed_genes(profile))
            context = profile if name == SEAL else context
        features = self._by_name(values)
        shared = {name: model.shared_images(features[name]) for name, model in self.models.items()}
        if SEAL in self.models:
            shared[FROZEN] = self.models[SEAL].shared_images(features[FROZEN])
        known = self.genes.measured(table.var_names)
        if not known.all():
            logger.info(
                "Section %r measures %d of the %d genes; the others are not scored.",
                facts["name"], known.sum(), len(known),
            )  # fmt: skip
        return SectionView(
            **facts,
            spots=table.obs_names.to_numpy()[rows],
            features=features,
            shared=shared,
            codes=codes,
            measured=self._target(table, rows),
            known=known,
            context=context,
            labels={name: self._label(table, rows, name) for name in self.labels},
        )

    def _label(self, table: AnnData, rows: np.ndarray, name: str) -> np.ndarray:
        """Values of a column as text; empty where there is none."""
        if name == Keys.PATIENT:
            return np.asarray(_section.patients(table, rows), dtype=str)
        check_key(table.obs, name, where="`table.obs`", hint="`labels` and `confounder` name columns of it.")
        values = table.obs[name].iloc[rows]
        return np.where(values.isna(), "", values.astype(str)).astype(str)

    def _target(self, table: AnnData, rows: np.ndarray) -> np.ndarray:
        """What is predicted: log1p-CP10k, or the log1p of raw counts; (rows, genes)."""
        if self.target == "lognorm" and any(self.genes is model.panel for model in self.models.values()):
            return _section.expression(table, self.genes, rows, Keys.LOGNORM, masked=True)
        if self.target == "lognorm":
            values = _section.lognorm(table)[rows]
        else:
            values = np.log1p(table.layers.get(Keys.COUNTS, table.X)[rows])
        return self.genes.extract(values, table.var_names, min_shared=0.0, warn_missing=False)
