"""Look at what the other calls stored: every plot reads slots and pixels, never a model."""

from typing import TYPE_CHECKING

from sealst._given.offered import offered

if TYPE_CHECKING:
    from sealst.pl._evaluation.bars import evaluation
    from sealst.pl._evaluation.calibration import calibration
    from sealst.pl._evaluation.gene_scatter import gene_scatter
    from sealst.pl._evaluation.learning_curve import learning_curve
    from sealst.pl._evaluation.pathway_agreement import pathway_agreement
    from sealst.pl._evaluation.residual_maps import residual_maps
    from sealst.pl._maps.attention import attention
    from sealst.pl._maps.crops import crops
    from sealst.pl._maps.explore import explore
    from sealst.pl._maps.expression import expression
    from sealst.pl._maps.pathways import pathways
    from sealst.pl._maps.retrieval import retrieval
    from sealst.pl._maps.slide import slide
    from sealst.pl._reports.evaluation import report
    from sealst.pl._reports.slides import slide_report
    from sealst.pl._slides.calibration import slide_calibration
    from sealst.pl._slides.curves import precision_recall, roc
    from sealst.pl._slides.kaplan_meier import kaplan_meier
    from sealst.pl._training import training
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = [
    "attention",
    "calibration",
    "crops",
    "evaluation",
    "explore",
    "expression",
    "gene_scatter",
    "kaplan_meier",
    "learning_curve",
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
