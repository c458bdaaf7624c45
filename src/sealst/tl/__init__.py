"""Train, embed, predict, retrieve, evaluate."""

from typing import TYPE_CHECKING

from sealst._given.offered import offered

if TYPE_CHECKING:
    from sealst._core.scores.probes import Protocol
    from sealst._core.scores.slide_evaluation import SlideEvaluation
    from sealst._evaluation import Evaluation
    from sealst._train.params import SlideParams, TrainParams
    from sealst.tl._cache import clear_cache
    from sealst.tl._embed.embed import embed
    from sealst.tl._embed.predict import predict
    from sealst.tl._evaluate.evaluate import evaluate
    from sealst.tl._fine.local import fit_local
    from sealst.tl._fine.tokens import token_map
    from sealst.tl._finetune.finetune import finetune
    from sealst.tl._pathways.pathways import pathways
    from sealst.tl._pathways.rank import rank_pathways
    from sealst.tl._retrieve.annotate import annotate
    from sealst.tl._retrieve.index import SealIndex, build_index
    from sealst.tl._retrieve.retrieve import retrieve
    from sealst.tl._slide_models.fit import fit_slide
    from sealst.tl._slide_models.predict import predict_slide
    from sealst.tl._slides.slides import embed_slides
else:
    __getattr__, __dir__ = offered(__name__)

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
    "fit_local",
    "fit_slide",
    "pathways",
    "predict",
    "predict_slide",
    "rank_pathways",
    "retrieve",
    "token_map",
]
