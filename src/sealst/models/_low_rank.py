"""Low-rank layers as a saved model has them, without peft: it takes seconds to import, and trains what is new.

Layers, their tensors and what can be asked of them are named as peft names them. `LoraParams.attach` makes peft's
layers, for training; `LoraParams.attach_stored` makes these, which are filled from a file.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

#: name of the adapter in those of its tensors, which files leave out
_NAME = "default"
_MAGNITUDE = "lora_magnitude_vector"


class _Magnitude(nn.Module):
    """Length that every row of a weight is given (DoRA)."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(_row_norms(weight))


class LowRank(nn.Module):
    """A linear layer or convolution with LoRA or DoRA beside it.

    Parameters
    ----------
    base
        The layer, which stays as it is.
    r, scaling, dropout
        Rank, factor on the product, dropout on its input in training.
    dora
        Whether rows have a magnitude of their own.
    """

    base_layer: Any
    lora_magnitude_vector: Any

    #: what peft's layers say where one adapter is there and in use
    merged, active_adapters = False, (_NAME,)

    def __init__(self, base: nn.Module, *, r: int, scaling: float, dropout: float, dora: bool) -> None:
        super().__init__()
        self.base_layer = base
        self.scaling, self.disable_adapters = {_NAME: scaling}, False
        if isinstance(base, nn.Conv2d):
            make: Any = type(base)
            shape = (base.kernel_size, base.stride, base.padding)
            down, up = make(base.in_channels, r, *shape, bias=False), make(r, base.out_channels, 1, bias=False)
        else:
            down, up = nn.Linear(self.base_layer.in_features, r, bias=False), None
            up = nn.Linear(r, self.base_layer.out_features, bias=False)
        nn.init.zeros_(up.weight)
        self.lora_dropout = nn.ModuleDict({_NAME: nn.Dropout(dropout) if dropout else nn.Identity()})
        self.lora_A, self.lora_B = nn.ModuleDict({_NAME: down}), nn.ModuleDict({_NAME: up})
        magnitudes = {_NAME: _Magnitude(self.base_layer.weight.detach())} if dora else {}
        self.lora_magnitude_vector = nn.ModuleDict(magnitudes)
        self.to(self.base_layer.weight.device)

    @property
    def is_dora(self) -> bool:
        """Whether it does more than add a product."""
        return len(self.lora_magnitude_vector) > 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What peft's layer gives, sums taken in the same order."""
        result = self.base_layer(x)
        if self.disable_adapters:
            return result
        down, up, drop = self._parts()
        x = x.to(down.weight.dtype)
        if not self.is_dora:
            return (result + up(down(drop(x))) * self.scaling[_NAME]).to(result.dtype)
        # The norm counts as a constant where gradients are taken (section 4.3 of the paper on DoRA).
        norms = _row_norms(self.base_layer.weight + self.scaling[_NAME] * self._product()).detach()
        factor = self.lora_magnitude_vector[_NAME].weight / norms
        if self.training and not isinstance(drop, nn.Identity):
            x = drop(x)
            plain = self.base_layer(x)
        else:
            plain = result
        if (bias := self.base_layer.bias) is not None:
            plain = plain - (bias if plain.ndim < 4 else bias.view(-1, 1, 1))
        # Brackets and all: another order of the sums is another result in the last digit.
        added = (factor - 1) * plain + factor * up(down(x)) * self.scaling[_NAME]
        return (result + added).to(result.dtype)

    def _parts(self) -> tuple[Any, Any, Any]:
        return self.lora_A[_NAME], self.lora_B[_NAME], self.lora_dropout[_NAME]

    def _product(self) -> torch.Tensor:
        """What is added to the weight, but for the scaling."""
        down, up, _ = self._parts()
        if isinstance(self.base_layer, nn.Linear):
            return up(down(torch.eye(down.in_features, device=down.weight.device, dtype=down.weight.dtype))).T
        return (up.weight.flatten(1) @ down.weight.flatten(1)).view_as(self.base_layer.weight)

    @torch.no_grad()
    def merged_layer(self) -> nn.Module:
        """The layer itself, with what stands beside it merged into its weight."""
        base = self.base_layer
        weight = base.weight + self.scaling[_NAME] * self._product()
        if self.is_dora:
            factor = (self.lora_magnitude_vector[_NAME].weight / _row_norms(weight)).flatten()
            weight = factor.view(-1, *(1,) * (weight.ndim - 1)) * weight
        base.weight.copy_(weight)
        return base


def _row_norms(weight: torch.Tensor) -> torch.Tensor:
    """Lengths of the rows of a weight, in the shape of what the layer gives."""
    if weight.ndim == 2:
        return torch.linalg.norm(weight, dim=1)
    return weight.norm(p=2, dim=(1, 2, 3), keepdim=True).transpose(1, 0)


class LowRankModel(nn.Module):
    """Stands where peft's model stands around a network whose adapter is trained.

    Parameters
    ----------
    network
        timm module; its layers are replaced in place.
    names
        The layers.
    config
        What `peft.LoraConfig` is made of, which files say.
    """

    def __init__(self, network: Any, names: Sequence[str], config: dict[str, Any]) -> None:
        super().__init__()
        self._names, self._config = tuple(names), config
        r, alpha = config["r"], config["lora_alpha"]
        scaling = alpha / math.sqrt(r) if config["use_rslora"] else alpha / r
        for name in names:
            base = network.get_submodule(name)
            layer = LowRank(base, r=r, scaling=scaling, dropout=config["lora_dropout"], dora=config["use_dora"])
            network.set_submodule(name, layer)
        self.base_model = nn.Module()
        self.base_model.model = network

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network gives."""
        return self.get_base_model()(*args, **kwargs)

    def get_base_model(self) -> Any:
        """The network, with the layers in place."""
        return self.base_model.model

    def _layers(self) -> Iterator[tuple[str, LowRank]]:
        for name in self._names:
            yield name, self.get_base_model().get_submodule(name)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Inside a ``with`` block, the network is what it was before."""
        before = {name: layer.disable_adapters for name, layer in self._layers()}
        try:
            for _, layer in self._layers():
                layer.disable_adapters = True
            yield
        finally:
            for name, layer in self._layers():
                layer.disable_adapters = before[name]

    def unload(self) -> Any:
        """The network as it was before, in place."""
        for name, layer in list(self._layers()):
            self.get_base_model().set_submodule(name, layer.base_layer)
        return self.get_base_model()

    def merge_and_unload(self, **_: Any) -> Any:
        """The network with the layers merged into its weights, in place."""
        for name, layer in list(self._layers()):
            self.get_base_model().set_submodule(name, layer.merged_layer())
        return self.get_base_model()

    def stored(self) -> dict[str, torch.Tensor]:
        """Tensors of the adapter by the names that they have in peft's files."""
        own = {name: p.detach() for name, p in self.named_parameters() if ".lora_" in name}
        return {_name_in_file(name): tensor for name, tensor in own.items()}

    def for_peft(self) -> Any:
        """What peft writes beside them, for those who load the adapter with it."""
        from peft import LoraConfig

        kind = type(self.get_base_model())
        mapping = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
        return LoraConfig(**self._config, auto_mapping=mapping, inference_mode=True)


def _name_in_file(name: str) -> str:
    if f".{_MAGNITUDE}." in name:
        return name.removesuffix(f".{_NAME}.weight")
    return name.replace(f".{_NAME}.", ".")


def adds_a_product(layer: nn.Module) -> bool:
    """Whether a layer is a linear one with LoRA beside it, ours or peft's, that does nothing else."""
    if type(layer) is LowRank:
        return not layer.is_dora and isinstance(layer.base_layer, nn.Linear)
    # A layer of peft's is there only where peft is.
    peft = sys.modules.get("peft.tuners.lora")
    if peft is None or type(layer) is not peft.Linear:
        return False
    # A variant, such as DoRA, does more than add a product; older peft has a switch for that one alone.
    return not (getattr(layer, "lora_variant", None) or any(getattr(layer, "use_dora", {}).values()))
