"""Encoders and the SEAL model."""

from sealst.models._adapter import Adapter, BlocksParams, BottleneckParams, FrozenParams, FullParams, LoraParams
from sealst.models._build import build_encoder
from sealst.models._encoder import Encoder
from sealst.models._gene_base import GeneEncoderParams
from sealst.models._gene_mlp import GeneMAEParams, GeneMLPParams
from sealst.models._gene_transformer import GeneTransformerParams
from sealst.models._gene_vae import GeneVAE, GeneVAEParams
from sealst.models._head import HeadParams
from sealst.models._image_model import ImageModel
from sealst.models._official import load_official
from sealst.models._projection import ProjectionParams
from sealst.models._registry import list_encoders
from sealst.models._seal import CropSpec, SealModel
from sealst.models._slide_aggregators import list_aggregators
from sealst.models._slide_model import SlideModel, SlideSpec
from sealst.models._slide_net import SlideNet, SlideOutput
from sealst.models._slide_store import load_slide
from sealst.models._spec import EncoderSpec
from sealst.models._store import load

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
    "LoraParams",
    "ProjectionParams",
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
