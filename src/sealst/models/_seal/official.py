"""The SEAL models that their authors published, as models of ours."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from sealst._core.device import resolve_device
from sealst._core.genes.names import placeholder_names
from sealst._core.genes.panel import GenePanel
from sealst._core.seeds import seeded
from sealst._core.space.geometry import CropSpec
from sealst._errors import DataError, WeightsError
from sealst._logging import warn
from sealst._validate import check_choice, check_count, check_positive, listed
from sealst.models._adapters import LoraParams
from sealst.models._encoders.build import build_from_spec, build_from_tensors
from sealst.models._encoders.encoder import Encoder
from sealst.models._encoders.records import REGISTRY
from sealst.models._encoders.spec import EncoderSpec
from sealst.models._encoders.weights import Sought, State, find_file, mismatch, read_tensors
from sealst.models._genes import GeneVAEParams
from sealst.models._seal.heads import HeadParams
from sealst.models._seal.seal import SealModel

#: what peft puts before the names of the tower, inside the authors' model and by itself
_TOWERS = ("encoder.base_model.model.", "base_model.model.")
#: peft leaves the name of the adapter out where it saves LoRA alone
_NAMELESS = re.compile(r"\.(lora_[AB])\.(weight|bias)$")
#: adapted layers, below the prefixes that published towers have
_LAYER = re.compile(r"^(?:visual\.)?(?:trunk\.)?(blocks\.(\d+)\.(.+?))\.(?:base_layer|lora_\w+\.\w+)\.(?:weight|bias)$")
_FLOW = re.compile(r"^flows\.(\d+)\.")

#: modules of the files → ours; those of the same name are left out
VISION_HEAD: Mapping[str, str] = {"decoder.decoder.0": "0", "decoder.decoder.3": "2"}
OMICS: Mapping[str, str] = {
    "encoder.0": "body.0",
    "encoder.1": "body.1",
    "encoder.4": "body.3",
    "encoder.5": "body.4",
    "fc_mu": "to_mu",
    "fc_logvar": "to_logvar",
    "decoder.0": "decoder.0",
    "decoder.2": "decoder.3",
    "decoder.5": "decoder.6",
}


def split_vision(state: State) -> tuple[State, State, list[str], State]:
    """Base encoder (published names), LoRA and the layers that it adapts (timm's), and the rest of a vision file.

    The base encoder is empty where the file holds LoRA alone.
    """
    prefix = next((one for one in _TOWERS if any(name.startswith(one) for name in state)), _TOWERS[0])
    inside = {
        _NAMELESS.sub(r".\1.default.\2", name.removeprefix(prefix)): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }
    tower, lora, layers = {}, {}, []
    for name, tensor in inside.items():
        if found := _LAYER.match(name):
            layers.append(found[1])
        if "lora_" in name:
            lora[name[found.start(1) :] if found else name] = tensor
            continue
        plain = name.replace(".base_layer.", ".")
        # Two tensors for one layer: the second keeps its name, which strict loading then reports.
        tower[name if plain in inside else plain] = tensor
    head = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
    return tower, lora, sorted(set(layers)), head


def published_adapter(lora: State, layers: Sequence[str], encoder: Encoder, path: str) -> LoraParams:
    """Rank and place of the LoRA layers in a file.

    Raises
    ------
    WeightsError
        When there are none, or `LoraParams` cannot describe where they are.
    """
    if outside := [name for name in lora if not name.startswith("blocks.")]:
        raise WeightsError(f"{path!r} has LoRA layers outside the encoder's blocks: {listed(outside, 4)}.")
    ranks = [tensor.shape[0] for name, tensor in sorted(lora.items()) if ".lora_A." in name and tensor.ndim]
    if not layers or not ranks:
        raise WeightsError(f"{path!r} has no LoRA layers; expected those of the last block of {encoder.spec.key!r}.")
    first = min(int(layer.split(".")[1]) for layer in layers)
    ends = sorted({layer.split(".", 2)[2] for layer in layers})
    n_blocks = max(encoder.spec.n_blocks - first, 1)
    for targets in (None, "|".join(map(re.escape, ends))):
        # Files do not hold the scaling; the published models have 1.
        adapter = LoraParams(r=ranks[0], alpha=float(ranks[0]), n_blocks=n_blocks, targets=targets)
        if set(adapter.layers(encoder)) == set(layers):
            return adapter
    raise WeightsError(
        f"{path!r} has LoRA on layers that differ from block to block, or on none of ours: {listed(layers, 6)}."
    )


def file_names(own: Iterable[str], modules: Mapping[str, str]) -> dict[str, str]:
    """Name in a file → our name, for all of our names."""
    theirs = {ours: name for name, ours in modules.items()}
    found = {}
    for name in own:
        module, _, leaf = name.rpartition(".")
        found[f"{theirs.get(module, module)}.{leaf}"] = name
    return found


HF_ID = "MahmoodLab/SEAL"
#: per file, a tensor that shows the length of an embedding, and the axis that does
_PROBES = {"vision": ("decoder.decoder.0.weight", 1), "omics": ("fc_mu.weight", 0)}


@dataclass(frozen=True, kw_only=True)
class Release:
    """A published model: its encoder and its sizes."""

    #: ``"seal-<encoder>"``; the names of the files follow from it
    name: str
    spec: EncoderSpec
    n_genes: int = 2000
    #: hidden widths of the gene autoencoder and of the expression head
    hidden: tuple[int, ...] = (1024, 512)
    head: int = 512
    #: how the SHA-256 of the published vision file begins (revision c20762e7 of `HF_ID`)
    sha256: str = ""

    def filename(self, kind: str) -> str:
        """Name of the ``"vision"`` or ``"omics"`` file."""
        return f"{self.name.replace('-', '_')}_{kind}.pth"


RELEASES: Mapping[str, Release] = MappingProxyType(
    {
        "conch": Release(name="seal-conch", spec=REGISTRY["conch"], sha256="0f7c1386ff79"),
        "uni2-h": Release(name="seal-univ2", spec=REGISTRY["uni2-h"], sha256="e7ae736968c3"),
    }
)
_ALIASES: Mapping[str, str] = MappingProxyType({"univ2": "uni2-h", "uni2": "uni2-h"})


def load_official(
    name: str,
    *,
    vision: str | Path | None = None,
    omics: str | Path | None = None,
    base: str | Path | None = None,
    genes: Sequence[str] | None = None,
    crop_um: float = 112.0,
    crop_px: int = 224,
    device: str | None = None,
) -> SealModel:
    """Load a SEAL model that its authors published (MahmoodLab/SEAL; Hemker et al. 2026, arXiv 2602.14177).

    The files are gated and licensed CC-BY-NC-ND-4.0. Where the vision file holds LoRA alone, the base encoder is had as
    `sealst.models.build_encoder` has it, which is gated on a page of its own; where it holds the base encoder too, no
    other weights are needed. The published files do not name the 2,000 genes: without `genes`, expression has
    placeholder names (``"unnamed_0001"``), and calls that match genes by name raise an error. Expression is in the
    units of the authors' training data and passes the networks as it is: the panel's mean is 0 and its deviation 1.
    Sections and patients of the training are not published either, so `sealst.tl.evaluate` cannot tell whether the
    model has seen a patient.

    Parameters
    ----------
    name
        ``"conch"`` or ``"uni2-h"`` (also ``"uni2"``, ``"univ2"``).
    vision, omics
        The two files, or folders with them: ``seal_<encoder>_vision.pth`` and ``seal_<encoder>_omics.pth``. By default
        they are looked for in the folder ``seal-conch`` or ``seal-univ2`` inside the one that the environment variable
        ``SEALST_WEIGHTS`` names, in the hub's cache, and on the hub.
    base
        Weights of the base encoder, for a vision file without them; by default they are looked for as those of
        `sealst.models.build_encoder`.
    genes
        Symbols of the 2,000 genes, in the order of the model's inputs and outputs. The order cannot be checked.
    crop_um, crop_px
        Crops the model takes, side in µm and in pixels; the defaults are those of the paper.
    device
        Device; default ``settings.device``.

    Returns
    -------
    The model, in evaluation mode.

    Raises
    ------
    WeightsError
        When a file cannot be had or is damaged, or is that of another model; names the first tensors that differ.
    DataError
        When `name` is unknown, or the number of `genes` is another one.

    Warns
    -----
    When `genes` is not given; when a file of the published name is not the one whose digest is known.

    Examples
    --------
    >>> model = sl.models.load_official("uni2-h", genes=names)  # doctest: +SKIP
    """
    check_choice("name", name, [*RELEASES, *_ALIASES])
    check_positive("crop_um", crop_um)
    check_count("crop_px", crop_px)
    release = RELEASES[_ALIASES.get(name, name)]
    crop = CropSpec(float(crop_um), int(crop_px))
    files = {"vision": vision, "omics": omics, "base": base}
    return load_release(release, files, genes=genes, crop=crop, device=device)


def load_release(
    release: Release,
    given: Mapping[str, str | Path | None],
    *,
    genes: Sequence[str] | None,
    crop: CropSpec,
    device: str | None,
) -> SealModel:
    """Load a published model from the files given, or from where they usually are; see `load_official`."""
    n = release.n_genes
    if genes is None:
        warn(
            f"The published files do not name the {n} genes of {release.name!r}: expression has placeholder names, and "
            "nothing can be matched by gene. Pass `genes=`, the names in the order of the model's outputs."
        )
    names = placeholder_names(n) if genes is None else tuple(genes)
    if isinstance(genes, str) or len(names) != n:
        raise DataError(f"`genes` must be the {n} names in the order of the model's outputs, found {len(names)}.")
    panel = GenePanel(names, np.zeros(n), np.ones(n))
    paths = {}
    for kind in _PROBES:
        sought = Sought(
            what=f"{release.name} ({kind})",
            folders=(release.name,),
            names=(release.filename(kind),),
            hf_id=HF_ID,
            gated=True,
            passing=f"`{kind}='<folder>/{{name}}'` to `sl.models.load_official`",
        )
        paths[kind] = find_file(sought, given[kind])
    states = {}
    for kind, path in paths.items():
        state = read_tensors(path, release.name)
        # The prefix of parallel training stands before all names or none.
        if all(name.startswith("module.") for name in state):
            state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
        _check_kind(release, kind, state, path)
        states[kind] = state
    tower, lora, layers, rest = split_vision(states["vision"])
    encoder = _base(release, tower, paths["vision"], given.get("base"))
    adapter = published_adapter(lora, layers, encoder, str(paths["vision"]))
    # Without any flow in the file 1, for strict loading to report.
    n_flows = max(len({found[1] for found in map(_FLOW.match, states["omics"]) if found}), 1)
    # Flows have vectors and an offset, whichever axes of length 1 they are stored with.
    omics = {name: tensor.squeeze() if _FLOW.match(name) else tensor for name, tensor in states["omics"].items()}
    gene_encoder = GeneVAEParams(hidden=release.hidden, n_flows=n_flows, invertible=False)
    head = HeadParams(release.head, norm=False, relu=True)
    with seeded(0):
        parts: dict[str, Any] = {"gene_encoder": gene_encoder, "head": head, "stored": True}
        model = SealModel(encoder, panel, crop=crop, adapter=adapter, **parts)
    added = {name: tensor for name, tensor in encoder.vit.state_dict().items() if "lora_" in name}
    _fill(added, dict(zip(added, added, strict=True)), lora, paths["vision"], release)
    for module, modules, state, kind in (
        (model.image_head, VISION_HEAD, rest, "vision"),
        (model.gene_encoder, OMICS, omics, "omics"),
    ):
        own = module.state_dict()
        _fill(own, file_names(own, modules), state, paths[kind], release)
    digests = {kind: _sha256(path) for kind, path in paths.items()}
    if paths["vision"].name == release.filename("vision") and not digests["vision"].startswith(release.sha256):
        warn(
            f"{str(paths['vision'])!r} is not the file of that name that is known (its SHA-256 begins "
            f"{digests['vision'][:12]}, expected {release.sha256}): it was changed, or published anew."
        )
    model.provenance = {
        "source": HF_ID,
        "files": {kind: {"name": path.name, "sha256": digests[kind]} for kind, path in paths.items()},
        "note": "training sections and patients are not published",
    }
    return model.to(resolve_device(device)).eval()


def _base(release: Release, tower: State, path: Path, base: str | Path | None) -> Encoder:
    """The base encoder of a vision file: its own, or where it has none, that of the registry."""
    spec = release.spec
    if tower:
        if base is not None:
            raise DataError(f"{str(path)!r} holds the base encoder itself; leave `base` out.")
        return build_from_tensors(spec, tower, path)
    try:
        return build_from_spec(spec, weights=base)
    except WeightsError as error:
        raise WeightsError(
            f"{str(path)!r} holds LoRA alone, which is there; its base encoder {spec.key!r} is not. {error} To "
            "`sl.models.load_official` pass it as `base='<file>'`."
        ) from error


def _check_kind(release: Release, kind: str, state: State, path: Path) -> None:
    """Tell files of the other kind and of other models, which strict loading would report by many names."""
    dim, expected = release.spec.dim, release.filename(kind)
    other = next(k for k in _PROBES if k != kind)
    probe, axis = _PROBES[kind]
    if probe not in state and _PROBES[other][0] in state:
        raise WeightsError(f"{str(path)!r} is the {other} file of a SEAL model; pass {expected!r} as `{kind}`.")
    found = state.get(probe)
    if found is not None and found.ndim == 2 and found.shape[axis] != dim:
        raise WeightsError(
            f"{str(path)!r} is not of {release.name!r}: {probe} has shape {tuple(found.shape)}, so embeddings have "
            f"{found.shape[axis]} values, expected {dim}. Pass {expected!r}; both files must be of the same encoder."
        )


def _fill(own: State, names: Mapping[str, str], state: State, path: Path, release: Release) -> None:
    """Copy tensors of a file into ours, strictly; `names` are those of the file → ours."""
    if problem := mismatch(state, {name: own[ours] for name, ours in names.items()}):
        raise WeightsError(
            f"{str(path)!r} does not hold the weights of {release.name!r}: {problem}. They are published as {HF_ID}."
        )
    with torch.no_grad():
        for name, ours in names.items():
            own[ours].copy_(state[name])


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
