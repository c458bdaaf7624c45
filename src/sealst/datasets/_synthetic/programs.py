"""Gene programs of the procedural sections: their genes, activity in a spot, and counts. Arrays only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


def _symbols(text: str) -> tuple[str, ...]:
    return tuple(text.split())


MARKERS: Mapping[str, tuple[str, ...]] = {
    "epithelium": _symbols("EPCAM KRT8 KRT18 KRT19 KRT7 CDH1 CLDN3 CLDN4 ELF3 MUC1 TACSTD2 SPINT2"),
    "tumour": _symbols("ERBB2 GRB7 STARD3 PGAP3 MIEN1 FASN S100P SCD CEACAM6 TFF3 AGR2 MUCL1"),
    "stroma": _symbols("COL1A1 COL1A2 COL3A1 DCN LUM FN1 SPARC POSTN COL6A1 COL6A3 BGN THY1"),
    "t_cell": _symbols("CD3D CD3E CD2 TRAC TRBC2 CD8A IL7R CCL5 GZMK LTB CD27 CD7"),
    "b_cell": _symbols("MS4A1 CD19 CD79A CD79B CD22 BANK1 CXCR5 FCRL1 TCL1A PAX5 VPREB3 CD37"),
    "plasma_cell": _symbols("IGKC JCHAIN IGHG1 IGHG3 IGHA1 MZB1 XBP1 DERL3 TNFRSF17 SDC1 IGLC2 PRDX4"),
    "adipose": _symbols("ADIPOQ PLIN1 PLIN4 FABP4 LEP CIDEC CIDEA LPL G0S2 CD36 LIPE AQP7"),
    "proliferation": _symbols("MKI67 TOP2A CCNB1 CDK1 BIRC5 TYMS PCNA UBE2C AURKA CENPF MCM2 RRM2"),
    "endothelium": _symbols("PECAM1 VWF CDH5 CLDN5 KDR ESAM EGFL7 PLVAP TIE1 RAMP2 ECSCR AQP1"),
}
HIDDEN: Mapping[str, tuple[str, ...]] = {f"hidden_{k}": tuple(f"HID{k}_{i:02d}" for i in range(1, 13)) for k in (1, 2)}
HOUSEKEEPING = _symbols("ACTB GAPDH B2M RPLP0 RPL13A EEF1A1 TUBA1B UBC HPRT1 PPIA YWHAZ SDHA")
VISIBLE = tuple(MARKERS)
PROGRAM_GENES: Mapping[str, tuple[str, ...]] = {**MARKERS, **HIDDEN}
PROGRAMS = tuple(PROGRAM_GENES)
N_NAMED = sum(len(genes) for genes in PROGRAM_GENES.values()) + len(HOUSEKEEPING)

# One fixed seed: programs are the same in every section, whatever its own seed.
_DEFINITION_SEED = 20260
_FOLD = (6.0, 24.0)
_MARKER_BASE, _HOUSEKEEPING_BASE = 0.25, 4.0
_AMBIENT, _DISPERSION, _DROPOUT, _LIBRARY_SD = 0.06, 8.0, 0.25, 0.35


@dataclass(frozen=True, eq=False)
class GenePrograms:
    """Genes and how programs raise them."""

    genes: tuple[str, ...]
    #: expression without any program, (G,), arbitrary unit
    base: np.ndarray
    #: multiples of `base` that a fully active program adds, (P, G), in the order of `PROGRAMS`
    fold: np.ndarray


@lru_cache(maxsize=8)
def gene_programs(n_genes: int) -> GenePrograms:
    """Define `n_genes` genes: markers, hidden genes, housekeeping, then background genes without a program."""
    named = [gene for genes in PROGRAM_GENES.values() for gene in genes]
    background = [f"GENE{i:04d}" for i in range(1, n_genes - N_NAMED + 1)]
    genes = (*named, *HOUSEKEEPING, *background)
    level = np.exp(np.random.default_rng([_DEFINITION_SEED, 1]).normal(0, 0.8, n_genes))
    level[: len(named)] *= _MARKER_BASE
    level[len(named) : N_NAMED] = _HOUSEKEEPING_BASE
    fold = np.zeros((len(PROGRAMS), n_genes))
    draw = np.random.default_rng([_DEFINITION_SEED, 2]).uniform(*_FOLD, len(named))
    owner = np.repeat(np.arange(len(PROGRAMS)), [len(g) for g in PROGRAM_GENES.values()])
    fold[owner, np.arange(len(named))] = draw
    return GenePrograms(genes, level, fold)


def visible_activity(composition: Mapping[str, np.ndarray], cells: Mapping[str, np.ndarray]) -> np.ndarray:
    """Activity of the visible programs, float64 (n, len(VISIBLE)), 0 to 1: a smooth function of what was drawn.

    `composition` holds the share of the spot's area by tissue class, `cells` its nuclei per mm² by kind, each (n,).
    """
    dividing = cells["tumour"] + 12 * cells["mitosis"]
    activity = {
        "epithelium": composition["gland"] + 0.7 * composition["tumour"],
        "tumour": composition["tumour"],
        "stroma": composition["stroma"] + 0.4 * composition["plasma"],
        "t_cell": np.tanh(cells["lymphocyte"] / 8000),
        "b_cell": composition["lymphoid"] ** 2,
        "plasma_cell": np.tanh(cells["plasma"] / 3500),
        "adipose": composition["adipose"],
        "proliferation": np.tanh((dividing / 7500) ** 2),
        "endothelium": np.tanh(5 * composition["vessel"]),
    }
    return np.column_stack([activity[name] for name in VISIBLE])


def draw_counts(
    rng: np.random.Generator,
    definition: GenePrograms,
    activity: np.ndarray,
    *,
    cellularity: np.ndarray,
    shift: np.ndarray,
    depth: float,
) -> np.ndarray:
    """Counts, int32 (n, G): gamma-Poisson around the expected expression, with ambient RNA and dropout of weak genes.

    `activity` is (n, P), in the order of `PROGRAMS`; `cellularity` nuclei per mm², (n,), as spots with more cells catch
    more RNA; `shift` the log factor of every gene in this patient, (G,); `depth` the mean total count of a spot.
    """
    rate = definition.base * (1 + activity @ definition.fold) * np.exp(shift)
    share = rate / rate.sum(1, keepdims=True)
    share = (1 - _AMBIENT) * share + _AMBIENT * share.mean(0)
    library = (0.3 + cellularity / max(float(cellularity.mean()), 1.0)) * rng.lognormal(0, _LIBRARY_SD, len(share))
    expected = share * (library * depth / library.mean())[:, None]
    counts = rng.poisson(expected * rng.gamma(_DISPERSION, 1 / _DISPERSION, share.shape))
    lost = rng.random(share.shape) < _DROPOUT * np.exp(-expected)
    return np.where(lost, 0, counts).astype(np.int32)
