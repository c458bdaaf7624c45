"""Encoders and the SEAL model."""

from typing import TYPE_CHECKING

from sealst._given.offered import offered

if TYPE_CHECKING:
    from sealst._core.search.programs import Programs
    from sealst._core.space.geometry import CropSpec
    from sealst.models._adapters import (
        Adapter,
        BlocksParams,
        BottleneckParams,
        FrozenParams,
        FullParams,
        LoraParams,
    )
    from sealst.models._encoders.build import build_encoder
    from sealst.models._encoders.encoder import Encoder, ImageModel
    from sealst.models._encoders.records import list_encoders
    from sealst.models._encoders.spec import EncoderSpec
    from sealst.models._genes import (
        GeneEncoderParams,
        GeneMAEParams,
        GeneMLPParams,
        GeneTransformerParams,
        GeneVAE,
        GeneVAEParams,
    )
    from sealst.models._local import LocalHead
    from sealst.models._seal.heads import HeadParams, ProjectionParams
    from sealst.models._seal.official import load_official
    from sealst.models._seal.readout import Readout
    from sealst.models._seal.reliability import Reliability
    from sealst.models._seal.seal import SealModel, load
    from sealst.models._slides.aggregators import list_aggregators
    from sealst.models._slides.model import SlideModel, SlideNet, SlideOutput, SlideSpec, load_slide
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = [
    "Adapter",
    "BlocksParams",
    "BottleneckParams",
    "CropSpec",
    "Encoder",
    "EncoderSpec",
    "FrozenParams",
    "FullParams",
    "GeneEncoderParams",
    "GeneMAEParams",
    "GeneMLPParams",
    "GeneTransformerParams",
    "GeneVAE",
    "GeneVAEParams",
    "HeadParams",
    "ImageModel",
    "LocalHead",
    "LoraParams",
    "Programs",
    "ProjectionParams",
    "Readout",
    "Reliability",
    "SealModel",
    "SlideModel",
    "SlideNet",
    "SlideOutput",
    "SlideSpec",
    "build_encoder",
    "list_aggregators",
    "list_encoders",
    "load",
    "load_official",
    "load_slide",
]
