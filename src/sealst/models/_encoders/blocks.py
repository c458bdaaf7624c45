"""Blocks of a network in the order in which crops pass them, by timm's own grouping of layers."""

from __future__ import annotations

from typing import Any

from timm.layers import Conv2dSame
from timm.models._manipulate import group_modules, group_parameters
from torch import nn

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
