"""What is done with every slide of a run, in a form that other processes can be sent."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from sealst._core.device import resolve_device
from sealst._core.space.views import first_and_mean
from sealst._data.bags.parts import Parts, file_digest
from sealst._data.crops.reader import RESAMPLING
from sealst._errors import DataError
from sealst._files import absolute
from sealst._keys import Keys
from sealst._settings import settings
from sealst.models import CropSpec, Encoder, SealModel, build_encoder, load
from sealst.models._encoders.encoder import base_name
from sealst.tl._embed.novelty import watched
from sealst.tl._slides.manifest import Slide

Model: TypeAlias = SealModel | Encoder

#: side of a tile in µm for encoders that state no scale: the convention of HEST-1k
_DEFAULT_UM = 112.0
#: array of a range that says which genes of the panel were predicted above 0
PRESENT = "present"


@dataclass(frozen=True)
class ModelRef:
    """How a process gets the model."""

    #: changes with weights and feeding
    identity: str
    #: folder of a SEAL model, or None for an encoder by name
    folder: Path | None = None
    encoder: str = ""
    pool: str | None = None
    pretrained: bool = True
    #: of random weights, which are the same in every process; None for pretrained ones
    seed: int | None = None
    #: of every process; "auto" is settled where the model is loaded
    device: str = "auto"

    def load(self) -> Model:
        """The model, on its device."""
        if self.folder is not None:
            return load(self.folder, device=self.device)
        built = build_encoder(self.encoder, pool=self.pool, pretrained=self.pretrained, seed=self.seed)
        return built.to(resolve_device(self.device))


@dataclass(frozen=True)
class Job:
    """Parameters of a run."""

    out: Path
    model: ModelRef
    tile_um: float
    step_um: float
    min_tissue: float
    tile_px: int
    frozen: bool = False
    #: flips and rotations of each tile that embeddings are the mean of
    views: int = 1
    #: of the encoder without its adapter, where its embeddings are written
    base: str = ""
    #: genes whose predicted expression is kept
    genes: tuple[str, ...] = ()
    #: gene sets as a table on disk, how the user calls them, and a digest of them
    net: Path | None = None
    net_label: str = ""
    net_digest: str = ""
    #: digest of what the model knows of its training, where it does
    novelty: str = ""
    tiles_per_task: int = 4096
    batch_size: int = 64
    #: settings of the caller, which workers do not have of themselves
    precision: str = "auto"
    n_jobs: int | None = None

    def settings(self) -> dict[str, Any]:
        """What decides the results, as plain types."""
        return {
            "model": self.model.identity,
            "tile_um": self.tile_um,
            "step_um": self.step_um,
            "tile_px": self.tile_px,
            "min_tissue": self.min_tissue,
            "frozen": self.frozen,
            "views": self.views,
            "genes": hashlib.sha256("\n".join(self.genes).encode()).hexdigest()[:16] if self.genes else "",
            "net": self.net_digest,
            "precision": self.precision,
            **({"novelty": self.novelty} if self.novelty else {}),
        }

    def digest(self, slide: Slide) -> str:
        """Digest of a slide's file and of what is done with it, 16 hex digits."""
        facts = self.settings() | {"file": file_digest(slide.path), "mpp": slide.mpp, "resampling": RESAMPLING}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def table(self, slide: Slide) -> Path:
        """File of a finished slide."""
        return self.out / "slides" / f"{slide.name}.h5ad"

    def parts(self, slide: Slide, digest: str) -> Parts:
        """What is kept of a slide until it is finished."""
        return Parts(self.out / "parts" / slide.name / f"{digest}-{self.tiles_per_task}", self.tiles_per_task)


# -- the model in this process ----------------------------------------------------------------------------------------
_held: dict[ModelRef, Model] = {}
#: an adapter is switched off for the whole model, so threads take turns
_turn = threading.RLock()


@contextmanager
def using(job: Job) -> Iterator[Model]:
    """Inside a ``with`` block, the model by itself, under the settings of the call.

    It is loaded once in a process, and used by one thread at a time; so are settings, which are the process's.
    """
    ref = job.model
    with _turn, settings.override(precision=job.precision, n_jobs=job.n_jobs):
        if ref not in _held:
            _held.clear()
            _held[ref] = ref.load()
        yield _held[ref]


@contextmanager
def held(ref: ModelRef, model: Model) -> Iterator[None]:
    """Inside a ``with`` block, this process uses a model that is in memory."""
    with _turn:
        _held[ref] = model
    try:
        yield
    finally:
        _held.pop(ref, None)


def opened(model: Any, *, pool: str | None, pretrained: bool, device: str | None) -> tuple[Model, ModelRef]:
    """Model in memory, and how other processes get it; that of a SealModel in memory has no folder."""
    if isinstance(model, SealModel):
        if device is not None:
            model.to(resolve_device(device))
        return model, ModelRef(model.fingerprint, device=device or str(model.device))
    if not isinstance(model, str | PathLike):
        raise TypeError(
            "`model` must be a SealModel, its folder, or the name of an encoder (see `sl.models.list_encoders`), found "
            f"{type(model).__name__}."
        )
    device = device or settings.device
    folder = absolute(model)
    if isinstance(model, PathLike) or (folder / "config.json").is_file():
        if pool is not None:
            raise DataError("`pool` is for encoders by name; a SEAL model has its own.")
        restored = load(folder, device=device)
        return restored, ModelRef(restored.fingerprint, folder, device=device)
    seed = None if pretrained else settings.seed
    ref = ModelRef("", encoder=model, pool=pool, pretrained=pretrained, seed=seed, device=device)
    encoder = ref.load()
    if not isinstance(encoder, Encoder):
        raise RuntimeError("an encoder by name is an Encoder")
    return encoder, replace(ref, encoder=encoder.spec.key, identity=base_name(encoder))


def crop_of(model: Model, crop_um: float | None, crop_px: int | None) -> CropSpec:
    """Size of a tile in µm and as the encoder sees it in pixels."""
    if isinstance(model, SealModel):
        for name, given, own in (("crop_um", crop_um, model.crop.crop_um), ("crop_px", crop_px, model.crop.crop_px)):
            if given is not None and given != own:
                raise DataError(
                    f"`{name}` is {given:g}, but the model was trained on {own:g}. Leave it out; `step_um` says how "
                    "far tiles lie apart."
                )
        return model.crop
    spec = model.spec
    native = _DEFAULT_UM if spec.native_mpp is None else spec.native_mpp * spec.input_px
    return CropSpec(float(native if crop_um is None else crop_um), spec.input_px if crop_px is None else int(crop_px))


def features_of(model: Model, job: Job) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """uint8 crops → embeddings by slot; pixels are read and a shared trunk runs once for both embeddings.

    With a model that knows what its training looked like, also log distances from it, (n, parts).
    """
    known = watched(model) if job.novelty else None

    def novelty(first: np.ndarray, crops: np.ndarray) -> dict[str, np.ndarray]:
        return {} if known is None else {Keys.NOVELTY: known.log_distances(first, crops)}

    if isinstance(model, SealModel) and job.frozen:

        def embed_both(crops: np.ndarray) -> dict[str, np.ndarray]:
            first, both = first_and_mean(lambda turned: np.hstack(model.embed_both(turned)), crops, job.views)
            found = {Keys.FROZEN: both[:, : model.dim], Keys.EMBEDDING: both[:, model.dim :]}
            return found | novelty(first[:, model.dim :], crops)

        return embed_both
    encoder = model.encoder if isinstance(model, SealModel) else model

    def embed(crops: np.ndarray) -> dict[str, np.ndarray]:
        first, mean = first_and_mean(partial(encoder.embed, batch_size=job.batch_size), crops, job.views)
        return {Keys.EMBEDDING: mean} | novelty(first, crops)

    return embed


def predicted(model: Model, job: Job, embedding: np.ndarray) -> dict[str, np.ndarray]:
    """What a range keeps of the expression predicted for it."""
    if not isinstance(model, SealModel) or not (job.genes or job.net):
        return {}
    # Tiles are predicted range by range, without those around them.
    values = model.predict_expression(embedding, readout=model.crop_readout)
    found: dict[str, np.ndarray] = {PRESENT: np.asarray((values > 0).any(axis=0))}
    if job.genes:
        column = {gene: i for i, gene in enumerate(model.panel.genes)}
        found[Keys.EXPRESSION] = values[:, [column[gene] for gene in job.genes]]
    return found


def provenance(model: Model, job: Job, crops: dict[str, Any]) -> dict[str, Any]:
    """Entries of ``.uns["sealst"]["embed"]``, as `sealst.tl.embed` writes them."""
    common = {"modality": "image", "crop_um": job.tile_um, "views": job.views, "crops": crops}
    if not isinstance(model, SealModel):
        made = {"model": job.model.encoder, "fingerprint": job.model.identity, "pool": model.spec.pool}
        return {Keys.EMBEDDING: made | common}
    entries: dict[str, Any] = {Keys.EMBEDDING: {"model": model.fingerprint} | common}
    if job.frozen:
        spec = model.encoder.spec
        entries[Keys.FROZEN] = {"model": spec.key, "fingerprint": job.base, "pool": spec.pool} | common
    return entries
