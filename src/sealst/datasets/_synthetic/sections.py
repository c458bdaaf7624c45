"""Procedural H&E sections with known truth."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
from scipy.spatial import cKDTree
from scipy.special import ndtr
from spatialdata import SpatialData
from spatialdata.models import Labels2DModel, ShapesModel
from spatialdata.transformations import Scale, Sequence, get_transformation

from sealst._errors import DataError
from sealst._keys import Keys
from sealst._settings import resolve_seed
from sealst._validate import check_choice, check_positive
from sealst.datasets._synthetic.drawing import Stain, render
from sealst.datasets._synthetic.histology import CLASSES, KINDS, Tissue, make_tissue, smooth_field
from sealst.datasets._synthetic.programs import (
    HIDDEN,
    N_NAMED,
    PROGRAM_GENES,
    PROGRAMS,
    VISIBLE,
    draw_counts,
    gene_programs,
    visible_activity,
)
from sealst.io import from_arrays

_MIN_SIZE_UM, _MPP_RANGE = 400.0, (0.1, 4.0)
_MIN_TISSUE = 0.5
_HIDDEN_SCALE_UM = 220.0
#: distance of the outermost spot centres from the picture's edge, so that a crop of 112 µm fits
_MARGIN_UM = 60.0
#: radius of a nucleus in `cells`
_NUCLEUS_UM = 3.5
# Streams of random numbers: a change in one part of the section leaves the others as they were.
_PATIENT, _LAYOUT, _DRAWING, _HIDDEN, _COUNTS = range(1, 6)


@dataclass(frozen=True)
class _Options:
    size_um: float
    mpp: float
    array: str
    pitch_um: float
    spot_um: float
    n_genes: int
    depth: float
    batch_effect: float
    stain_variation: float
    cells: bool
    seed: int

    def __post_init__(self) -> None:
        for name in ("size_um", "mpp", "pitch_um", "spot_um", "depth"):
            check_positive(name, getattr(self, name))
        for name in ("batch_effect", "stain_variation"):
            if (value := getattr(self, name)) != 0:
                check_positive(name, value)
        check_choice("array", self.array, ("hex", "square"))
        _check_whole("seed", self.seed, 0)
        _check_whole("n_genes", self.n_genes, N_NAMED, why="the marker, hidden and housekeeping genes are always there")
        if self.size_um < _MIN_SIZE_UM:
            raise DataError(f"`size_um` must be at least {_MIN_SIZE_UM:g}, found {self.size_um:g}.")
        if not _MPP_RANGE[0] <= self.mpp <= _MPP_RANGE[1]:
            raise DataError(f"`mpp` must lie between {_MPP_RANGE[0]:g} and {_MPP_RANGE[1]:g}, found {self.mpp:g}.")
        if self.spot_um > self.pitch_um:
            raise DataError(
                f"`spot_um` ({self.spot_um:g}) must not exceed `pitch_um` ({self.pitch_um:g}): spots do not overlap."
            )


def synthetic(
    n_sections: int = 1,
    *,
    n_patients: int | None = None,
    size_um: float = 2000.0,
    mpp: float = 0.5,
    array: str = "hex",
    pitch_um: float = 100.0,
    spot_um: float = 55.0,
    n_genes: int = 600,
    depth: float = 4000.0,
    batch_effect: float = 0.3,
    stain_variation: float = 1.0,
    cells: bool = False,
    seed: int | None = None,
) -> SpatialData | list[SpatialData]:
    """Draw H&E sections with spots whose expression follows from the drawn tissue, with the truth kept.

    The picture shows tumour nests, ducts, collagen, lymphoid aggregates, plasma cells, fat and vessels, stained in
    optical density (Beer-Lambert) with the patient's own hematoxylin and eosin. The counts come from gene programs:
    *visible* ones are smooth functions of what lies in the spot (tissue classes, nuclei), *hidden* ones are smooth
    random fields that the picture knows nothing about, so no image model can predict them.

    Parameters
    ----------
    n_sections
        Number of sections.
    n_patients
        Number of patients, over whom the sections are spread evenly. Default: one patient per section.
    size_um
        Side of the square picture in µm, at least 400.
    mpp
        µm per pixel of the picture, 0.1 to 4.
    array
        Layout of the spots: ``"hex"`` (Visium) or ``"square"`` (legacy Spatial Transcriptomics).
    pitch_um, spot_um
        Distance between neighbouring spot centres and diameter of a spot, in µm.
    n_genes
        Number of genes. Markers, hidden and housekeeping genes come first and are always there; background genes
        without a program (``GENE0001``, …) fill up.
    depth
        Mean total count of a spot.
    batch_effect
        Standard deviation of the log factor by which each patient changes each gene; 0 for none.
    stain_variation
        How much patients differ in hue and strength of the stain; 0 for none, 1 as between laboratories.
    cells
        Whether to add what is known below the scale of a spot: every nucleus that was drawn, and the tissue's classes.
    seed
        Same seed, same sections; default ``settings.seed``. Genes and programs are the same for every seed.

    Returns
    -------
    SpatialData for one section, else a list of `n_sections`. Sections are named ``"P1_S1"``, …; see `io.from_arrays`
    for the elements. Only spots of which at least half lies on tissue are kept. The table also has

    - ``.obs["in_tissue"]``: bool, True
    - ``.obs["truth_nuclei"]``: nuclei per mm² in the spot, float64
    - ``.obsm["truth_composition"]``: DataFrame, share of the spot's area by tissue class, rows sum to 1
    - ``.obsm["truth_programs"]``: DataFrame, activity of every program, 0 to 1
    - with `cells` also ``sdata.shapes["<section>_nuclei"]``: circles of 3.5 µm about the nuclei, with their ``kind``;
      and ``sdata.labels["<section>_classes"]``: classes of the tissue at 2 µm, numbered in the order of
      ``.obsm["truth_composition"]`` from 1 on
    - ``.uns["synthetic"]``: ``visible_programs``, ``hidden_programs``, ``program_genes``, ``batch_shift`` (log factor
      by gene), ``stain``, and the arguments

    Raises
    ------
    DataError
        When an argument is out of range, or fewer than two spots lie on tissue.

    See Also
    --------
    synthetic_net : the programs as a gene-set network.

    Examples
    --------
    >>> import sealst as sl
    >>> sdata = sl.datasets.synthetic(size_um=800, mpp=1.0)
    >>> sdata.tables["table"].obsm["truth_programs"].columns[0]
    'epithelium'
    """
    options = _Options(
        size_um=size_um,
        mpp=mpp,
        array=array,
        pitch_um=pitch_um,
        spot_um=spot_um,
        n_genes=n_genes,
        depth=depth,
        batch_effect=batch_effect,
        stain_variation=stain_variation,
        cells=bool(cells),
        seed=resolve_seed(seed),
    )
    _check_whole("n_sections", n_sections, 1)
    people = n_sections if n_patients is None else n_patients
    _check_whole("n_patients", people, 1)
    if people > n_sections:
        raise DataError(f"`n_patients` ({people}) must not exceed `n_sections` ({n_sections}).")
    owners = np.arange(n_sections) * people // n_sections
    index = np.arange(n_sections) - np.searchsorted(owners, owners)
    sections = [_section(options, int(owner), int(i)) for owner, i in zip(owners, index, strict=True)]
    return sections[0] if n_sections == 1 else sections


def synthetic_net() -> pd.DataFrame:
    """Gene programs of `synthetic` as a network for `tl.pathways` and decoupler.

    Returns
    -------
    DataFrame with columns ``source`` (program, visible and hidden), ``target`` (gene) and ``weight`` (0 to 1, relative
    to the strongest effect of any program on a gene).

    Examples
    --------
    >>> import sealst as sl
    >>> net = sl.datasets.synthetic_net()
    >>> net.loc[net["source"] == "b_cell", "target"].iloc[0]
    'MS4A1'
    """
    definition = gene_programs(N_NAMED)
    program, gene = np.nonzero(definition.fold)
    return pd.DataFrame(
        {
            "source": np.array(PROGRAMS, dtype=object)[program],
            "target": np.array(definition.genes, dtype=object)[gene],
            "weight": definition.fold[program, gene] / definition.fold.max(),
        }
    )


def _check_whole(name: str, value: Any, low: int, *, why: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
        raise DataError(
            f"`{name}` must be a whole number of at least {low}, found {value!r}" + (f": {why}." if why else ".")
        )


def _section(options: _Options, patient: int, index: int) -> SpatialData:
    name = f"P{patient + 1}_S{index + 1}"
    # The same for all sections of the patient: the stain of its laboratory, and a log factor of every gene.
    rng = np.random.default_rng([options.seed, _PATIENT, patient])
    stain = Stain.vary(rng, options.stain_variation)
    shift = options.batch_effect * rng.standard_normal(options.n_genes)

    def stream(part: int) -> np.random.Generator:
        return np.random.default_rng([options.seed, part, patient, index])

    tissue = make_tissue(stream(_LAYOUT), options.size_um)
    margin = max(_MARGIN_UM, options.spot_um / 2)
    xy, array = lattice(options.size_um, options.pitch_um, margin, hexagonal=options.array == "hex")
    glass = classes_in_spots(tissue, xy, options.spot_um)[:, CLASSES.index("background")]
    kept = glass <= 1 - _MIN_TISSUE
    if kept.sum() < 2:
        raise DataError(
            f"Only {kept.sum()} of {len(xy)} spots lie on tissue; at least 2 are needed. Raise `size_um` "
            f"({options.size_um:g}) or lower `pitch_um` ({options.pitch_um:g})."
        )
    xy, array = xy[kept], array[kept]
    composition = pd.DataFrame(classes_in_spots(tissue, xy, options.spot_um), columns=list(CLASSES))
    cells = pd.DataFrame(cells_in_spots(tissue, xy, options.spot_um), columns=list(KINDS)).drop(columns="erythrocyte")
    inputs = [{str(kind): frame[kind].to_numpy() for kind in frame} for frame in (composition, cells)]
    programs = pd.DataFrame(visible_activity(*inputs), columns=list(VISIBLE))
    rng = stream(_HIDDEN)
    for hidden in HIDDEN:
        field = smooth_field(rng, len(tissue.labels), _HIDDEN_SCALE_UM / tissue.step)
        # A Gaussian field of variance 1, uniform between 0 and 1.
        programs[hidden] = ndtr(tissue.at(field, xy))
    nuclei = cells.sum(axis=1).to_numpy()
    definition = gene_programs(options.n_genes)
    counts = draw_counts(
        stream(_COUNTS), definition, programs.to_numpy(), cellularity=nuclei, shift=shift, depth=options.depth
    )
    sdata = from_arrays(
        render(tissue, stream(_DRAWING), stain, mpp=options.mpp),
        counts,
        xy / options.mpp,
        genes=definition.genes,
        mpp=options.mpp,
        spot_um=options.spot_um,
        section=name,
        spot_ids=[f"{row}x{col}" for row, col in array],
        patient=f"P{patient + 1}",
        organ="synthetic breast",
        technology="synthetic",
        array=array,
        obs=pd.DataFrame({"in_tissue": np.ones(len(xy), dtype=bool), "truth_nuclei": nuclei}),
    )
    table = sdata.tables["table"]
    table.obsm["truth_composition"] = composition.set_index(table.obs_names)
    table.obsm["truth_programs"] = programs.set_index(table.obs_names)
    table.uns["synthetic"] = {
        "visible_programs": list(VISIBLE),
        "hidden_programs": list(HIDDEN),
        "program_genes": {program: list(genes) for program, genes in PROGRAM_GENES.items()},
        "batch_shift": shift,
        "stain": {name: list(values) for name, values in asdict(stain).items()},
        **asdict(options),
    }
    if options.cells:
        _add_cells(sdata, name, tissue, options.mpp)
    return sdata


def _add_cells(sdata: SpatialData, name: str, tissue: Tissue, mpp: float) -> None:
    """Nuclei as circles and classes as labels, in the frame of the picture."""
    nuclei = tissue.nuclei
    drawn = (nuclei.kind != KINDS.index("erythrocyte")) & (
        (nuclei.xy > _NUCLEUS_UM) & (nuclei.xy < tissue.size_um - _NUCLEUS_UM)
    ).all(axis=1)
    circles = gpd.GeoDataFrame(
        {
            "radius": np.full(drawn.sum(), _NUCLEUS_UM / mpp),
            "kind": pd.Categorical.from_codes(nuclei.kind[drawn].astype(int), categories=list(KINDS)),
        },
        geometry=gpd.points_from_xy(*(nuclei.xy[drawn] / mpp).T),
    )
    systems = get_transformation(sdata.images[Keys.image(name)], get_all=True)
    sdata.shapes[f"{name}_nuclei"] = ShapesModel.parse(circles, transformations=dict(systems))
    pixel = Scale([tissue.step / mpp] * 2, axes=("x", "y"))
    sdata.labels[f"{name}_classes"] = Labels2DModel.parse(
        tissue.labels.astype(np.uint8) + 1,
        dims=("y", "x"),
        transformations={system: Sequence([pixel, to]) for system, to in systems.items()},
    )


def lattice(size_um: float, pitch_um: float, margin_um: float, *, hexagonal: bool) -> tuple[np.ndarray, np.ndarray]:
    """Centres (x, y) in µm and array positions (row, col) of all spots of a square array.

    Hexagonal arrays count columns in half pitches, as Visium does: row + col is even everywhere.
    """
    across = pitch_um / 2 if hexagonal else pitch_um
    down = pitch_um * np.sqrt(0.75) if hexagonal else pitch_um
    usable = size_um - 2 * margin_um
    n_rows, n_cols = (int(usable / d + 1e-9) + 1 if usable >= 0 else 0 for d in (down, across))
    row, col = (a.ravel() for a in np.meshgrid(np.arange(n_rows), np.arange(n_cols), indexing="ij"))
    if hexagonal:
        used = (row + col) % 2 == 0
        row, col = row[used], col[used]
    # Centre the array in the picture.
    offset = (size_um - np.array([(n_cols - 1) * across, (n_rows - 1) * down])) / 2
    return np.column_stack([col * across, row * down]) + offset, np.column_stack([row, col])


def classes_in_spots(tissue: Tissue, xy: np.ndarray, spot_um: float) -> np.ndarray:
    """Share of each spot's area by tissue class, float64 (n, classes); rows sum to 1."""
    reach = int(np.ceil(spot_um / 2 / tissue.step))
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = np.hypot(dx, dy) * tissue.step <= spot_um / 2
    offset = np.column_stack([dx[disc], dy[disc]]) * tissue.step
    labels = np.stack([tissue.at(tissue.labels, xy + shift) for shift in offset], axis=1)
    return np.stack([(labels == k).mean(1) for k in range(len(CLASSES))], axis=1)


def cells_in_spots(tissue: Tissue, xy: np.ndarray, spot_um: float) -> np.ndarray:
    """Drawn cells per mm² of each spot by kind, float64 (n, kinds)."""
    inside = cKDTree(tissue.nuclei.xy).query_ball_point(xy, spot_um / 2)
    kinds = [np.bincount(tissue.nuclei.kind[i], minlength=len(KINDS)) for i in inside]
    return np.array(kinds) / (np.pi * (spot_um / 2000) ** 2)
