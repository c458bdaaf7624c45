"""Train, embed, predict, retrieve, evaluate."""

from sealst._core.protocols import Protocol
from sealst._core.slide_evaluation import SlideEvaluation
from sealst._evaluation import Evaluation
from sealst._train._params import TrainParams
from sealst._train._slide_params import SlideParams
from sealst.tl._annotate import annotate
from sealst.tl._cache import clear_cache
from sealst.tl._embed import embed
from sealst.tl._evaluate import evaluate
from sealst.tl._finetune import finetune
from sealst.tl._fit_slide import fit_slide
from sealst.tl._index import SealIndex, build_index
from sealst.tl._pathways import pathways
from sealst.tl._predict import predict
from sealst.tl._predict_slide import predict_slide
from sealst.tl._rank_pathways import rank_pathways
from sealst.tl._retrieve import retrieve
from sealst.tl._slides import embed_slides

__all__ = [
    "Evaluation",
    "Protocol",
    "SealIndex",
    "SlideEvaluation",
    "SlideParams",
    "TrainParams",
    "annotate",
    "build_index",
    "clear_cache",
    "embed",
    "embed_slides",
    "evaluate",
    "finetune",
    "fit_slide",
    "pathways",
    "predict",
    "predict_slide",
    "rank_pathways",
    "retrieve",
]
