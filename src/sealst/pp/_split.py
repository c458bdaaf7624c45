"""Folds that keep patients, sections or spatial blocks together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata.transformations import get_transformation

from sealst import _section
from sealst._core import splits
from sealst._core.space import lattice
from sealst._docs import documented
from sealst._errors import DataError, LeakError, ScaleError
from sealst._html import as_html
from sealst._keys import Keys
from sealst._logging import logger, warn
from sealst._section import Data, Part, parts_of
from sealst._settings import resolve_seed
from sealst._validate import check_key, check_positive, listed, whole

_BLOCK_FOLDS = 5


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """One fold: the spots to train on and the spots to test on."""

    #: names of the training spots (``obs_names``), by section
    train: dict[str, np.ndarray]
    #: names of the test spots (``obs_names``), by section
    test: dict[str, np.ndarray]
    #: what is held out, e.g. ``"patient-A"``
    name: str

    @property
    def train_sections(self) -> list[str]:
        """Names of the sections with training spots."""
        return list(self.train)

    @property
    def test_sections(self) -> list[str]:
        """Names of the sections with test spots."""
        return list(self.test)

    def __repr__(self) -> str:
        n_train, n_test = (sum(map(len, side.values())) for side in (self.train, self.test))
        return (
            f"Split({self.name!r}: train on {n_train} spots of {listed(self.train)}, "
            f"test on {n_test} spots of {listed(self.test)})"
        )

    def _repr_html_(self) -> str:
        sides = (("train", self.train), ("test", self.test))
        rows = [{"side": s, "section": name, "spots": len(spots)} for s, own in sides for name, spots in own.items()]
        return as_html(f"Split {self.name!r}", {}, rows=rows)


@documented
def split(
    sections: Data | Sequence[Data],
    *,
    by: str = "patient",
    n_folds: int | None = None,
    allow_shared_patients: bool = False,
    block_um: float = 1000.0,
    buffer_um: float | None = None,
    seed: int | None = None,
    table_key: str = Keys.TABLE,
) -> list[Split]:
    """Divide spots into folds for cross-validation, by default so that no patient stands on both sides.

    Parameters
    ----------
    sections
        Sections as SpatialData or AnnData, one of which may hold several, or a `sealst.io.Collection`. Patients are
        read from ``.obs["patient"]``.
    by
        What stays together:

        - ``"patient"``: all spots of a patient.
        - ``"section"``: all spots of a section. Refused where a patient then stands on both sides.
        - a column of ``.obs`` such as ``"organ"``: all spots with one value, so that a fold is tested on an organ
          (technology, stain, hospital) that it has not seen. Refused where a patient then stands on both sides.
        - ``"block"``: square blocks within sections. Every patient stands on both sides by construction, so this
          measures interpolation within tissue the model has seen; a warning says so.
    n_folds
        Number of folds, balanced by number of spots. Default: leave one patient (or section) out; 5 for blocks.
    allow_shared_patients
        Whether a patient may stand on both sides; with ``by="block"``, where one always does, it silences the warning.
    block_um
        Edge of a block in µm; only with ``by="block"``, which needs SpatialData with a coordinate system ``"um"``.
    buffer_um
        Training spots this close to a test spot, in µm between centres, are left out of a fold: their spot context
        mixes in test counts. Default: 1.42 times the pitch of the spots, which takes every array neighbour; 0 keeps
        all.
    seed
        Seed of the position of the blocks and of their order; default ``settings.seed``. Patients and sections involve
        no chance.
    %(table_key)s

    Returns
    -------
    One `Split` per fold: ``train`` and ``test`` map the name of a section to the ``obs_names`` of its spots. Every spot
    is tested on exactly once over all folds.

    Raises
    ------
    DataError
        When there are too few patients, sections or blocks, or ``.obs["patient"]`` has empty values.
    LeakError
        When a patient stands on both sides of a fold by section or column, or a section under two names: with the same
        counts, or the same picture under its spots.
    MissingKeyError
        When ``.obs["patient"]`` or the column is absent.
    ScaleError
        With ``by="block"`` when the scale of the spots in µm is unknown.

    Examples
    --------
    >>> folds = sl.pp.split([s1, s2, s3])
    >>> [fold.name for fold in folds]
    ['patient-P1', 'patient-P2', 'patient-P3']
    """
    if n_folds is not None:
        whole("n_folds", n_folds, least=2)
    parts = parts_of(sections, table_key)
    if by == "block":
        check_positive("block_um", block_um)
        if buffer_um is not None and not buffer_um >= 0:
            raise DataError(f"`buffer_um` must be 0 or more, found {buffer_um!r}.")
        folds = _split_blocks(
            parts, n_folds or _BLOCK_FOLDS, block_um=block_um, buffer_um=buffer_um, seed=resolve_seed(seed)
        )
        if not allow_shared_patients:
            warn(
                "Splits by block put every patient on both sides: the scores say how well a model fills gaps in tissue "
                "it has seen, not how it does on a new patient. `allow_shared_patients=True` silences this."
            )
        return folds
    if by == "patient":
        patients = np.concatenate([_patients(part) for part in parts])
        known = np.unique(patients)
        if len(known) < 2:
            raise DataError(
                f"Folds by patient need at least 2 patients, found only {listed(known)}. Add sections of other "
                "patients; within one patient use `by='section'` with `allow_shared_patients=True`, or `by='block'`, "
                "and say so with the results."
            )
        if n_folds is not None and n_folds > len(known):
            raise DataError(f"`n_folds={n_folds}` is more than the {len(known)} patients {listed(known)}.")
        folds = [
            _fold(parts, train, test, "patient-" + "+".join(np.unique(patients[test])))
            for train, test in splits.group_folds(patients, n_folds)
        ]
        if not allow_shared_patients:
            _section.refuse_twin_folds(parts, folds)
        return folds
    if by == "section":
        if len(parts) < 2:
            raise DataError(
                f"Folds by section need at least 2 sections, found only {parts[0].section!r}. Use `by='block'`."
            )
        if n_folds is not None and n_folds > len(parts):
            raise DataError(
                f"`n_folds={n_folds}` is more than the {len(parts)} sections {listed(p.section for p in parts)}."
            )
        names = np.repeat([part.section for part in parts], [len(part.rows) for part in parts])
        return _split_groups(parts, names, "section", n_folds, allow_shared_patients)
    values = []
    for part in parts:
        obs = part.table.obs
        check_key(
            obs.columns,
            by,
            where=f"`.obs` of section {part.section!r}",
            hint="`by` must be 'patient', 'section', 'block', or a column of `.obs` of every section.",
        )
        found = obs[by].iloc[part.rows]
        if found.isna().any():
            raise DataError(f"`.obs[{by!r}]` is empty for {found.isna().sum()} spots of section {part.section!r}.")
        values.append(found.astype(str).to_numpy(dtype=str))
    known = np.unique(np.concatenate(values))
    if len(known) < 2:
        raise DataError(f"Folds by {by!r} need at least 2 values, found only {listed(known)}.")
    return _split_groups(parts, np.concatenate(values), by, n_folds, allow_shared_patients)


@documented
def check_split(
    train_sections: Data | Sequence[Data], test_sections: Data | Sequence[Data], *, table_key: str = Keys.TABLE
) -> None:
    """Refuse sections to train and to test on that come from the same patient, or are the same under another name.

    Parameters
    ----------
    train_sections, test_sections
        The two sides, as SpatialData or AnnData with ``.obs["patient"]``, or a `sealst.io.Collection`.
    %(table_key)s

    Returns
    -------
    None where no patient and no section stands on both sides.

    Raises
    ------
    LeakError
        When one does; the text names the patient and its sections, or the sections that have the same counts or the
        same picture under their spots.
    MissingKeyError
        When ``.obs["patient"]`` is absent.

    Examples
    --------
    >>> sl.pp.check_split([s1, s2], [s3])
    """
    parts = [
        parts_of(side, table_key, name=name)
        for side, name in ((train_sections, "train_sections"), (test_sections, "test_sections"))
    ]
    sides = [{part.section: np.unique(_patients(part)).tolist() for part in side} for side in parts]
    _refuse_shared(sides[0], sides[1], "Move these sections to one side, e.g. with `sl.pp.split(sections)`.")
    known = [{part.section: _section.likeness_of(part) for part in side} for side in parts]
    _section.refuse_twins(known[0], known[1])


def _split_groups(
    parts: Sequence[Part], groups: np.ndarray, what: str, n_folds: int | None, allow_shared: bool
) -> list[Split]:
    """Folds that keep groups together, refused where a patient then stands on both sides."""
    folds = [
        _fold(parts, train, test, f"{what}-" + "+".join(np.unique(groups[test])))
        for train, test in splits.group_folds(groups, n_folds)
    ]
    if not allow_shared:
        patients = {part.section: pd.Series(_patients(part), index=part.obs_names) for part in parts}
        for fold in folds:
            sides = [
                {name: patients[name].loc[spots].unique().tolist() for name, spots in side.items()}
                for side in (fold.train, fold.test)
            ]
            _refuse_shared(
                sides[0], sides[1], "Split with `by='patient'`, or pass `allow_shared_patients=True` if you mean it."
            )
        _section.refuse_twin_folds(parts, folds)
    return folds


def _split_blocks(
    parts: Sequence[Part], n_folds: int, *, block_um: float, buffer_um: float | None, seed: int
) -> list[Split]:
    # What is drawn must not depend on the order of the call.
    parts = sorted(parts, key=lambda part: part.section)
    rng = np.random.default_rng(seed)
    positions = [_positions_um(part) for part in parts]
    blocks, total = [], 0
    for xy in positions:
        block = splits.spatial_blocks(xy, block_um, shift=rng.random(2))
        blocks.append(block + total)
        total += int(block.max()) + 1
    # Folds are filled by size; a random order among blocks of one size spreads them over the tissue.
    labels = rng.permutation(total)[np.concatenate(blocks)]
    n_blocks = len(np.unique(labels))
    if n_blocks < n_folds:
        raise DataError(
            f"The sections hold {n_blocks} block(s) of {block_um:g} µm, fewer than the {n_folds} folds. Use a smaller "
            "`block_um` or fewer `n_folds`."
        )
    folds = []
    for i, (train, test) in enumerate(splits.group_folds(labels, n_folds), start=1):
        # Rows, counted over all sections, that are neither tested on nor close to one that is.
        side = np.zeros(sum(map(len, positions)), dtype=bool)
        side[test] = True
        keep, start = [], 0
        for xy in positions:
            here = np.arange(start, start + len(xy))
            distance = lattice.REACH * lattice.pitch(xy) if buffer_um is None else buffer_um
            close = splits.near(xy, xy[side[here]], distance) if distance > 0 else np.zeros(len(xy), dtype=bool)
            keep.append(here[~close & ~side[here]])
            start += len(xy)
        kept = np.concatenate(keep)
        if not len(kept):
            raise DataError(f"No training spot of fold {i} lies outside the buffer; lower `buffer_um` or `n_folds`.")
        logger.info("Block fold %d: %d training spots next to test spots are left out.", i, len(train) - len(kept))
        folds.append(_fold(parts, kept, test, f"block-{i}"))
    return folds


def _positions_um(part: Part) -> np.ndarray:
    if isinstance(part.data, AnnData):
        raise ScaleError(
            f"Blocks are measured in µm, but section {part.section!r} is an AnnData, which has no scale. Pass its "
            "SpatialData, or split `by='section'`."
        )
    spots = _section.spot_table(part.data, part)
    if Keys.UM not in get_transformation(spots, get_all=True):
        raise ScaleError(
            f"`sdata.shapes[{part.name!r}]` has no coordinate system 'um', so blocks cannot be measured in µm. "
            "Add it: `sd.transformations.set_transformation(shapes, Scale([mpp, mpp], axes=('x', 'y')), 'um')`."
        )
    centres = spots.geometry.centroid
    matrix = _section.affine(spots, Keys.UM)
    return np.column_stack([centres.x, centres.y]) @ matrix[:2, :2].T + matrix[:2, 2]


def _fold(parts: Sequence[Part], train: np.ndarray, test: np.ndarray, name: str) -> Split:
    return Split(_spots_by_section(parts, train), _spots_by_section(parts, test), name)


def _spots_by_section(parts: Sequence[Part], rows: np.ndarray) -> dict[str, np.ndarray]:
    """Spot names by section, of row numbers counted over all parts."""
    chosen = np.zeros(sum(len(part.rows) for part in parts), dtype=bool)
    chosen[rows] = True
    sides, start = {}, 0
    for part in parts:
        mask = chosen[start : start + len(part.rows)]
        if mask.any():
            sides[part.section] = part.obs_names[mask]
        start += len(mask)
    return sides


def _patients(part: Part) -> np.ndarray:
    # Not `patients_of`, where the section stands in for an absent column: serial sections would pass as patients.
    check_key(
        part.table.obs.columns,
        Keys.PATIENT,
        where=f"`.obs` of section {part.section!r}",
        hint="Name the patient of every spot, e.g. `table.obs['patient'] = 'A'`.",
    )
    return _section.patients(part.table, part.rows)


def _refuse_shared(train: Mapping[str, Sequence[str]], test: Mapping[str, Sequence[str]], hint: str) -> None:
    shared = splits.shared_groups(train, test)
    if not shared:
        return
    cases = [
        f"patient {patient!r} (train: {listed(sides[0])}; test: {listed(sides[1])})"
        for patient, sides in list(shared.items())[:5]
    ]
    more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
    raise LeakError(
        f"The same patient stands on both sides of the split: {'; '.join(cases)}{more}. Sections of one tumour are not "
        f"independent, so test scores would be too good. {hint}"
    )
