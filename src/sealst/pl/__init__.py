"""Look at what the other calls stored: every plot reads slots and pixels, never a model."""

from sealst.pl._attention import attention
from sealst.pl._calibration import calibration
from sealst.pl._crops import crops
from sealst.pl._evaluation import evaluation
from sealst.pl._expression import expression
from sealst.pl._gene_scatter import gene_scatter
from sealst.pl._kaplan_meier import kaplan_meier
from sealst.pl._pathway_agreement import pathway_agreement
from sealst.pl._pathways import pathways
from sealst.pl._report import report
from sealst.pl._residual_maps import residual_maps
from sealst.pl._retrieval import retrieval
from sealst.pl._slide import slide
from sealst.pl._slide_calibration import slide_calibration
from sealst.pl._slide_curves import precision_recall, roc
from sealst.pl._slide_report import slide_report
from sealst.pl._training import training

__all__ = [
    "attention",
    "calibration",
    "crops",
    "evaluation",
    "expression",
    "gene_scatter",
    "kaplan_meier",
    "pathway_agreement",
    "pathways",
    "precision_recall",
    "report",
    "residual_maps",
    "retrieval",
    "roc",
    "slide",
    "slide_calibration",
    "slide_report",
    "training",
]
