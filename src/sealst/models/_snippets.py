"""Code in the cards of saved and exported models; that of timm folders runs with nothing of ours installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sealst.models._encoders.encoder import Encoder

SEAL_SNIPPET = """
import sealst as sl

model = sl.models.load("<this folder>")
sl.tl.predict(sdata, model)
"""

ADAPTER_SNIPPET = """
import sealst as sl
from peft import PeftModel

# Any timm module with the same weights under timm's names will do.
base = sl.models.build_encoder("{key}", pool="{pool}").vit
model = PeftModel.from_pretrained(base, "<this folder>").merge_and_unload().eval()
"""

_LOAD = """
import timm
import torch

folder = "<this folder>"
model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)  # for PIL images of [PX] px

images = torch.stack([transform(picture) for picture in pictures])
with torch.inference_mode():
    out = model(images)
"""

_TOKENS = """
# timm has no such pooling: the model returns all tokens, and they are pooled here.
z = torch.cat([PARTS], dim=1)
"""

_ATTENTION = """
# timm has no such pooling: the model returns all tokens, and one learned query attends to them.
from safetensors.torch import load_file
from torch.nn.functional import layer_norm, linear, scaled_dot_product_attention

w = load_file(f"{folder}/attention_pooler.safetensors")


def layer(x, name):
    return linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def norm(x, name):
    return layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def heads(x):
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


with torch.inference_mode():
    tokens = norm(out, "ln_k")
    query = layer(norm(w["query"], "ln_q"), "q").expand(len(tokens), 1, -1)
    z = scaled_dot_product_attention(heads(query), heads(layer(tokens, "k")), heads(layer(tokens, "v")))
    z = norm(layer(z.transpose(1, 2).flatten(2), "proj"), "ln")[:, 0]
"""


def timm_snippet(encoder: Encoder, crop_px: int) -> str:
    """Code that loads an exported folder and embeds `pictures` as `z`."""
    spec, code = encoder.spec, _LOAD.replace("[PX]", str(crop_px))
    if spec.family != "vit" or spec.pool in ("cls", "mean"):
        return code.replace("out = model", "z = model")
    if not spec.pool.startswith("attn"):
        parts = {"cls": "out[:, 0]", "mean": f"out[:, {spec.n_prefix}:].mean(1)"}
        return code + _TOKENS.replace("PARTS", ", ".join(parts[name] for name in spec.pool.split("+")))
    text = '    z = z @ w["to_text"]\n' if spec.pool == "attn-proj" else ""
    return code + _ATTENTION.replace("HEADS", str(spec.pooler_args["heads"])) + text
