"""Crops to read and the expression that belongs to them, gathered from sections."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from sealst import _section
from sealst._core.genes.panel import GenePanel
from sealst._core.losses.registry import COUNT_RECONSTRUCTION
from sealst._core.space.surroundings import patches
from sealst._core.splits import evenly
from sealst._data.crops.source import CropSource, Rows
from sealst._data.dataset import Measured, PairDataset
from sealst._data.tokens import source_digest
from sealst._errors import DataError
from sealst._keys import Keys
from sealst._logging import logger, progress
from sealst._train.params import TrainParams
from sealst._validate import listed
from sealst.models import CropSpec

#: organ of sections that do not say theirs
_UNKNOWN = "unknown"
#: spots that a readout is fitted on, at most: with 2,000 genes some 3 GB while it is chosen
_MAX_SAMPLE = 20_000
#: crops of a section whose pixels tell a run from another
_COMPARED = 64


@dataclass(frozen=True)
class Pairs:
    """Crops to read and the expression that belongs to them, in one order."""

    sources: list[CropSource]
    expression: np.ndarray
    measured: Measured
    #: section, patient and organ of every source
    labels: dict[str, list[str]]
    #: counts of every spot over all genes
    library: np.ndarray
    #: some spots that a readout is fitted on, and the log1p-CP10k of these spots alone, (spots, genes)
    sample: np.ndarray
    single: np.ndarray
    #: where these spots lie in their sections, in µm, (spots, 2)
    centres: np.ndarray
    #: squares of further fields of view about these spots, by their side in µm
    wider: dict[float, list[CropSource]]
    #: for what does not fit into memory
    folder: Path

    def __len__(self) -> int:
        return len(self.expression)


def gather_pairs(
    sections: Sequence[SpatialData],
    panel: GenePanel,
    spec: CropSpec,
    *,
    table_key: str,
    folder: Path,
    wider: Sequence[float] = (),
) -> Pairs:
    """Boxes of crops and expression of all sections, which are opened one by one; `wider` are further fields in µm."""
    folder.mkdir()
    expression = Rows(folder / "expression.f32")
    sources, measured = [], []
    labels: dict[str, list[str]] = {"section": [], "patient": [], "organ": []}
    library: list[np.ndarray] = []
    sample: list[np.ndarray] = []
    single: list[np.ndarray] = []
    centres: list[np.ndarray] = []
    fields: dict[float, list[CropSource]] = {um: [] for um in wider}
    share = max(1, _MAX_SAMPLE // max(1, len(sections)))

    def gather(sdata: SpatialData) -> None:
        paired = _section.paired_table(sdata, table_key, trained_on=spec)
        table = paired.table
        for one in paired.sections:
            region, rows = one.region, one.rows
            sources.append(one.source)
            expression.add(_section.expression(table, panel, rows, masked=True))
            measured.append(panel.measured(table.var_names))
            # Spread over the section, so that a cohort of any size fits into memory.
            few = patches(one.centres_um, share)
            centres.append(one.centres_um[few])
            for um, found in fields.items():
                source = one.widened(um).source
                found.append(source._replace(boxes=source.boxes[few], plain=None))
            sample.append(few + sum(len(source.boxes) for source in sources[:-1]))
            single.append(_section.expression(table, panel, rows[few], Keys.LOGNORM, masked=True))
            labels["section"].append(region.section)
            library.append(_counts_per_spot(table, rows))
            labels["patient"].append("/".join(_section.patients_of(table, region.rows)))
            organ = table.obs[Keys.ORGAN].iloc[region.rows[0]] if Keys.ORGAN in table.obs else _UNKNOWN
            labels["organ"].append(str(organ))
            if not measured[-1].all():
                logger.info(
                    "Section %r measures %d of the panel's %d genes; its spots do not count for the others.",
                    region.section, measured[-1].sum(), len(panel),
                )  # fmt: skip

    for _ in map(gather, sections):
        pass
    section = np.repeat(np.arange(len(sources)), [len(source.boxes) for source in sources])
    counts = np.concatenate(library)
    return Pairs(
        sources=sources,
        expression=expression.finished(),
        measured=Measured(np.array(measured), section),
        labels=labels,
        library=counts,
        sample=np.concatenate(sample),
        single=np.concatenate(single),
        centres=np.concatenate(centres),
        wider=fields,
        folder=folder,
    )


def crop_digests(parts: Sequence[Pairs], px: int, *, show: bool | None) -> dict[str, str]:
    """Digest of the crops that are trained on (and held out), by section: of all squares, and of the pixels of some.

    A picture that was exchanged, moved or stained anew is another one in nearly all of its crops; reading all of a
    large cohort once more would take longer than many a training.
    """
    found: dict[str, str] = {}
    sources = [pair for pairs in parts for pair in zip(pairs.labels["section"], pairs.sources, strict=True)]
    chosen = [evenly(len(source.boxes), _COMPARED) for _, source in sources]
    with progress(None, "comparing crops", total=sum(map(len, chosen)), show=show) as bar:
        for (section, source), rows in zip(sources, chosen, strict=True):
            digest = hashlib.sha256(np.ascontiguousarray(source.boxes, dtype=np.float64).tobytes())
            digest.update(source_digest(CropSource(source.levels, source.boxes[rows]), px, bar=bar).encode())
            found[section] = found.get(section, "") + digest.hexdigest()[:16]
    return found


def _counts_per_spot(table: AnnData, rows: np.ndarray) -> np.ndarray:
    if Keys.COUNTS not in table.layers:
        return np.full(len(rows), np.nan, dtype=np.float32)
    return np.asarray(table.layers[Keys.COUNTS][rows].sum(axis=1), dtype=np.float32).ravel()


def organs_of(pairs: Pairs, params: TrainParams) -> tuple[str, ...]:
    """Organs that the gene decoder is told of."""
    if not params.organ_embedding:
        return ()
    known = sorted(set(pairs.labels["organ"]) - {_UNKNOWN, "nan", ""})
    if len(known) < 2:
        raise DataError(
            f"`params.organ_embedding` needs sections of at least two organs in `.obs[{Keys.ORGAN!r}]`, found "
            f"{listed(known)}. Leave it out."
        )
    return tuple(known)


def extras_of(pairs: Pairs, params: TrainParams) -> dict[str, np.ndarray]:
    """Values of every spot that some losses need."""
    section, extras = pairs.measured.section, {}
    if params.weight_domain:
        extras["domain"] = np.unique(pairs.labels[params.domain], return_inverse=True)[1][section]
        if not extras["domain"].any():
            raise DataError(f"`params.weight_domain` needs at least two of `domain` {params.domain!r}; there is one.")
    if organs := organs_of(pairs, params):
        number = {name: i for i, name in enumerate(organs)}
        extras["organ"] = np.array([number.get(name, -1) for name in pairs.labels["organ"]])[section]
    if params.reconstruction in COUNT_RECONSTRUCTION:
        extras["library"] = _known_counts(pairs.library, params, "section")
    return extras


def _known_counts(library: np.ndarray, params: TrainParams, what: str) -> np.ndarray:
    if np.isnan(library).any():
        raise DataError(
            f"`params.reconstruction={params.reconstruction!r}` needs `.layers['counts']` of every {what}; "
            "`sl.pp.normalize` keeps them."
        )
    return library


def warmup_patients(warmup: AnnData | Sequence[AnnData] | None) -> set[str] | None:
    """Patients of the expression-only tables; None where a table names neither patients nor sections."""
    tables = [] if warmup is None else [warmup] if isinstance(warmup, AnnData) else list(warmup)
    if any(not isinstance(t, AnnData) or not {Keys.PATIENT, Keys.SECTION} & set(t.obs.columns) for t in tables):
        return None
    return {patient for table in tables for patient in _section.patients_of(table)}


def more_expression(
    warmup: AnnData | Sequence[AnnData] | None, panel: GenePanel, params: TrainParams
) -> PairDataset | None:
    """Expression without images, in the panel's order; that of the tables in the call says nothing."""
    if warmup is None:
        return None
    found = []
    for table in [warmup] if isinstance(warmup, AnnData) else warmup:
        if not isinstance(table, AnnData):
            raise TypeError(f"`warmup` must hold AnnData, found {type(table).__name__}.")
        layer = params.layer if params.layer in table.layers else Keys.LOGNORM
        rows = np.arange(table.n_obs)
        part = _section.expression(table, panel, rows, layer, masked=True)
        # Names first: those of cells hardly ever differ in their rounding.
        names = [*map(str, table.obs.get(Keys.SECTION, pd.Series(dtype=str)).unique()), *map(str, table.obs_names)]
        key = (names, hashlib.sha256(np.ascontiguousarray(part).tobytes()).digest())
        found.append((key, part, panel.measured(table.var_names), _counts_per_spot(table, rows)))
    if not found:
        raise DataError("`warmup` is empty; pass tables of expression, or leave it out.")
    _, values, measured, library = zip(*sorted(found, key=itemgetter(0)), strict=True)
    section = np.repeat(np.arange(len(values)), [len(v) for v in values])
    extra = {}
    if params.reconstruction in COUNT_RECONSTRUCTION:
        extra["library"] = _known_counts(np.concatenate(library), params, "table of `warmup`")
    return PairDataset(None, np.concatenate(values), measured=Measured(np.array(measured), section), extra=extra)
