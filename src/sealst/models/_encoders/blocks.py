"""Parts of a network: its blocks in the order in which crops pass them (timm's own grouping of layers), and poolers."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Attention, Conv2dSame
from timm.models._manipulate import group_modules, group_parameters
from timm.models.vision_transformer import Block
from torch import nn
from torch.nn import functional as F

from sealst.models._low_rank import adds_a_product

#: above all blocks; adapted by a switch of its own
_POOLER = "attn_pool."


def adaptable(module: nn.Module) -> bool:
    """Whether LoRA can stand beside a layer and be merged into it: linear, or a convolution over all channels."""
    if not isinstance(module, nn.Conv2d):
        return isinstance(module, nn.Linear)
    # Subclasses pad or standardise in their own way, which the low-rank layer beside them would not.
    plain = type(module) is nn.Conv2d or (type(module) is Conv2dSame and module.kernel_size == (1, 1))
    return plain and module.groups == 1


def block_layers(module: Any) -> list[list[str]]:
    """Names of the adaptable layers of every block, from the first block to the last; the stem is none."""
    if not hasattr(module, "group_matcher"):
        return []
    found = group_modules(module, module.group_matcher(coarse=False))
    layers = dict(module.named_modules())
    blocks = [
        [name for name in names if adaptable(layers[name]) and not name.startswith(_POOLER)]
        for place, names in sorted(found.items())
        if place > 0
    ]
    return [block for block in blocks if block]


def parameter_depths(module: Any) -> dict[str, int]:
    """How many blocks lie above each parameter: 0 for the last block and for all that follows it."""
    groups = group_parameters(module, module.group_matcher(coarse=False), reverse=True)
    places = [groups[f"{block[0]}.weight"] for block in block_layers(module)]
    return {name: sum(block > place for block in places) for name, place in groups.items()}


#: tokens (B, tokens, n) and the weights (out, n) that they meet; a layer's output is the sum over such pairs
_Pairs = list[tuple[torch.Tensor, torch.Tensor]]


def gives_class_token(block: nn.Module) -> bool:
    """Whether `class_token` knows all that a block does; else the block must run as it is."""
    attn: Any = getattr(block, "attn", None)
    # Subclasses may do more, and so may hooks.
    if type(block) is not Block or type(attn) is not Attention:
        return False
    if not isinstance(attn.q_norm, nn.Identity) or not isinstance(attn.k_norm, nn.Identity):
        return False
    if any(m._forward_hooks or m._forward_pre_hooks for m in block.modules()):
        return False
    return type(attn.qkv) is nn.Linear or adds_a_product(attn.qkv)


def class_token(block: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Class token (B, 1, width) behind a block of a vision transformer, from all tokens (B, tokens, width) before it.

    One query needs no keys and values: with the weights K and V of a head, q · (K x) = (Kᵀ q) · x, and the sum over
    tokens of p (V x) is V times the sum of p x. So no product of all tokens with a matrix is left.
    """
    first = tokens[:, :1]
    first = first + block.drop_path1(block.ls1(_attend(block.attn, block.norm1(tokens))))
    return first + block.drop_path2(block.ls2(block.mlp(block.norm2(first))))


def _attend(attn: Any, tokens: torch.Tensor) -> torch.Tensor:
    """What attention gives the class token: (B, 1, width)."""
    pairs, bias = _pairs(attn.qkv, tokens)
    shape = (3, attn.num_heads, attn.head_dim)
    weights = [(x, w.view(*shape, -1)) for x, w in pairs]
    q = sum(torch.einsum("bn,hdn->bhd", x[:, 0], w[0]) for x, w in weights)
    # The same addend for all keys would change nothing behind the softmax, so theirs is left out.
    q = (q if bias is None else q + bias.view(shape)[0]) * attn.scale
    scores = sum(torch.einsum("btn,bhn->bht", x, torch.einsum("bhd,hdn->bhn", q, w[1])) for x, w in weights)
    shares = attn.attn_drop(scores.softmax(dim=-1))  # type: ignore[union-attr]
    mixed = sum(torch.einsum("bhn,hdn->bhd", torch.einsum("bht,btn->bhn", shares, x), w[2]) for x, w in weights)
    if bias is not None:
        # Shares need not sum to 1 where some were dropped.
        mixed = mixed + bias.view(shape)[2] * shares.sum(-1, keepdim=True)
    out = attn.norm(mixed.flatten(1)[:, None])  # type: ignore[union-attr]
    if attn.gate is not None:
        out = out * attn.gate(tokens[:, :1]).sigmoid()
    return attn.proj_drop(attn.proj(out))


def _pairs(layer: Any, tokens: torch.Tensor) -> tuple[_Pairs, torch.Tensor | None]:
    """A linear layer, and LoRA beside it, as tokens and weights, not multiplied; and the bias."""
    if type(layer) is nn.Linear:
        return [(tokens, layer.weight)], layer.bias
    base = layer.base_layer
    pairs = [(tokens, base.weight)]
    if layer.disable_adapters or layer.merged:
        return pairs, base.bias
    for name in layer.active_adapters:
        if name in layer.lora_A:
            low = layer.lora_A[name](layer.lora_dropout[name](tokens.to(layer.lora_A[name].weight.dtype)))
            pairs.append((low, layer.lora_B[name].weight * layer.scaling[name]))
    return pairs, base.bias


class AttentionPooler(nn.Module):
    """One learned query attends to all tokens (Lu et al. 2024), in plain linear layers that LoRA reaches.

    Parameters
    ----------
    width
        Length of a token.
    dim
        Length of the query and of the embedding.
    heads
        Attention heads.
    bias
        Whether the linear layers have a bias: CONCH's do, CONCH v1.5's do not.
    projected
        Whether there is a projection to the space shared with text.
    """

    to_text: torch.Tensor

    def __init__(self, width: int, dim: int, *, heads: int, bias: bool, projected: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.randn(1, dim))
        self.ln_q, self.ln_k, self.ln = nn.LayerNorm(dim), nn.LayerNorm(width), nn.LayerNorm(dim)
        self.q, self.proj = nn.Linear(dim, dim, bias=bias), nn.Linear(dim, dim, bias=bias)
        self.k, self.v = nn.Linear(width, dim, bias=bias), nn.Linear(width, dim, bias=bias)
        if projected:
            self.register_buffer("to_text", torch.randn(dim, dim) * dim**-0.5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, dim) of tokens (B, tokens, width), class token included."""
        tokens = self.ln_k(tokens)
        query = self.q(self.ln_q(self.query)).expand(len(tokens), 1, -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, self.k(tokens), self.v(tokens)))
        pooled = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.ln(self.proj(pooled))[:, 0]

    def project(self, pooled: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, dim) in the space shared with text."""
        return pooled @ self.to_text
