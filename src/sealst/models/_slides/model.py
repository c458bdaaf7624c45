"""A fitted slide model: what predicts labels of slides from bags of tile embeddings."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from sealst._core.device import resolve_device
from sealst._core.scores.slide_evaluation import SlideEvaluation
from sealst._core.seeds import seeded
from sealst._errors import CheckpointError, DataError, SealstError
from sealst._files import TABLE_BYTES, absolute, new_folder, put_back, read_text, write_json, write_text
from sealst._given.schema import Blocks, Name, Names, Share, Stored, Width, check_fields, one_of
from sealst._html import as_html
from sealst._validate import check_choice, listed, resolve_params
from sealst._version import __version__
from sealst.models._adapters import check_tensors, tensor_shapes
from sealst.models._slides.aggregators import Aggregator, Pooled, build_aggregator


class SlideOutput(NamedTuple):
    """Prediction of one slide."""

    #: probabilities (n_classes,), or one number: the prediction in its unit, or the log risk
    value: np.ndarray
    #: weight of every tile (n_tiles,), sums to 1
    attention: np.ndarray


class SlideNet(nn.Module):
    """Aggregator with the moments of its training slides.

    Parameters
    ----------
    aggregator
        Name in `AGGREGATORS`.
    dim, n_out
        Length of an embedding, and number of outputs.
    hidden, attention, dropout
        See `Aggregator`.
    """

    centre: torch.Tensor
    scale: torch.Tensor
    out_centre: torch.Tensor
    out_scale: torch.Tensor

    def __init__(self, aggregator: str, dim: int, n_out: int, *, hidden: int, attention: int, dropout: float) -> None:
        super().__init__()
        self.pool: Aggregator = build_aggregator(
            aggregator, dim, n_out, hidden=hidden, attention=attention, dropout=dropout
        )
        self.dim, self.n_out = dim, n_out
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("out_centre", torch.zeros(()))
        self.register_buffer("out_scale", torch.ones(()))

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.centre.device

    def trained_state(self) -> dict[str, torch.Tensor]:
        """Everything that fitting changes."""
        return self.state_dict()

    def forward(self, tiles: torch.Tensor, label: int | None = None) -> Pooled:
        """Pool the tiles (n, dim) of one slide; outputs are logits, standardised numbers or log risks."""
        return self.pool((tiles - self.centre) / self.scale, label)

    def predict(self, features: np.ndarray, xy: np.ndarray | None) -> SlideOutput:
        """Prediction and attention of one slide, all of its tiles at once, deterministic.

        Parameters
        ----------
        features
            Embeddings (n, dim).
        xy
            Centres (n, 2), for aggregators that look at the order of tiles; None takes the order as it is.
        """
        order = slide_order(xy, len(features), ordered=self.pool.ordered)
        tiles = torch.as_tensor(np.asarray(features, dtype=np.float32)[order], device=self.device)
        self.eval()
        with torch.inference_mode():
            pooled = self(tiles)
        logits = pooled.streams.float().mean(dim=0)
        if self.n_out > 1:
            value = logits.softmax(dim=0).cpu().numpy().astype(np.float64)
        else:
            value = (logits * self.out_scale + self.out_centre).cpu().numpy().astype(np.float64)
        attention = np.empty(len(features))
        attention[order] = pooled.attention.double().cpu().numpy()
        return SlideOutput(value, attention / attention.sum())


def slide_order(xy: np.ndarray | None, n: int, *, ordered: bool) -> np.ndarray:
    """Rows of tiles from top to bottom and left to right where order matters, as they are otherwise."""
    return np.lexsort((xy[:, 0], xy[:, 1])) if ordered and xy is not None else np.arange(n)


_FORMAT = 1
_CONFIG, _MEMBERS = "config.json", "members.safetensors"
_EVALUATIONS = ("evaluation", "test_evaluation")
#: columns of stored tables that hold numbers, and whole ones
_NUMBERS, _COUNTS = ("value", "low", "high", "time"), ("n", "n_patients")


def load_slide(path: str | Path, *, device: str | None = None) -> SlideModel:
    """Load a slide model that `SlideModel.save` wrote.

    Parameters
    ----------
    path
        Folder of the model.
    device
        Device; default ``settings.device``.

    Returns
    -------
    The model; predictions equal those before saving.

    Raises
    ------
    CheckpointError
        When a file is missing or damaged, or weights are not those that config.json names.

    Examples
    --------
    >>> model = sl.models.load_slide("grade_model")  # doctest: +SKIP
    """
    folder = absolute(path)
    put_back(folder)
    if missing := [name for name in (_CONFIG, _MEMBERS) if not (folder / name).is_file()]:
        raise CheckpointError(f"{str(folder)!r} is not a complete slide model: it lacks {listed(missing)}.")
    config = _Config.read(folder / _CONFIG)
    try:
        model = _restored(folder, config)
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, SealstError) as error:
        raise CheckpointError(f"The slide model in {str(folder)!r} is damaged: {error}") from error
    if model.fingerprint != config.fingerprint:
        raise CheckpointError(f"Weights in {str(folder)!r} do not match config.json's fingerprint; it is damaged.")
    return model.to(device)


class _Facts(Stored):
    """What is read of the account of an evaluation."""

    task: Name


class _Provenance(Stored):
    patients: Names = ()


class _Config(Stored):
    """``config.json``; `SlideSpec` checks what its record holds."""

    format: Literal[1]
    kind: Literal["slide"]
    spec: dict[str, Any]
    n_members: dict[Name, Blocks]
    fingerprint: Name
    provenance: dict[str, Any]
    facts: dict[Literal["evaluation", "test_evaluation"], dict[str, Any]]


def _restored(folder: Path, config: _Config) -> SlideModel:
    spec = resolve_params(SlideSpec, config.spec, name="spec")
    _Provenance.of(config.provenance, where="`provenance` of config.json")
    if set(config.n_members) != set(spec.targets) or (spec.classes and set(spec.classes) != set(spec.targets)):
        raise CheckpointError(f"The slide model in {str(folder)!r} is damaged: its targets are not the same in all.")

    def built() -> dict[str, list[SlideNet]]:
        return {t: [spec.build(t).eval() for _ in range(config.n_members[t])] for t in spec.targets}

    # Before anything is allocated: what the facts describe is what the file holds.
    with torch.device("meta"):
        described = _named_tensors(spec, built())
    check_tensors(_MEMBERS, described, tensor_shapes(folder / _MEMBERS))
    with seeded(0):
        members = built()
    own = _named_tensors(spec, members)
    tensors = load_file(folder / _MEMBERS)
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
    read = {name: _read_evaluation(folder, name, facts) for name, facts in config.facts.items()}
    return SlideModel(spec, members, read["evaluation"], read.get("test_evaluation"), provenance=config.provenance)


def _named_tensors(spec: SlideSpec, members: Mapping[str, Sequence[SlideNet]]) -> dict[str, torch.Tensor]:
    """All tensors of the networks, under the names that the file has for them."""
    return {
        f"{t}.{i}.{name}": tensor
        for t, target in enumerate(spec.targets)
        for i, net in enumerate(members[target])
        for name, tensor in net.trained_state().items()
    }


def _read_evaluation(folder: Path, name: str, facts: dict[str, Any]) -> SlideEvaluation:
    texts = (read_text(folder / f"{name}{part}.csv", most=TABLE_BYTES) for part in ("", "_predictions"))
    table, predictions = (pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False) for text in texts)
    task = _Facts.of(facts, where=f"`facts` of {name} in config.json").task
    numbers = [*_NUMBERS, *(["truth", "prediction"] if task != "classification" else [])]
    for frame in (table, predictions):
        for column in frame:
            if column in numbers or column.startswith("p_"):
                frame[column] = frame[column].replace("", "nan").astype(float)
            elif column in _COUNTS:
                frame[column] = frame[column].astype(int)
            elif column == "event":
                frame[column] = frame[column] == "True"
    return SlideEvaluation(table, predictions, facts)


@dataclass(frozen=True)
class SlideSpec:
    """What a slide model predicts, from what."""

    #: ``"classification"``, ``"regression"`` or ``"survival"``
    task: Annotated[str, one_of("classification", "regression", "survival")]
    #: columns that are predicted; for survival the time
    targets: Annotated[Names, Field(min_length=1)]
    #: per target its classes in the order of probabilities, for classification
    classes: Mapping[Name, Names]
    #: column that says whether the event was seen, for survival
    event: Name | None
    aggregator: Name
    #: name of the embedding
    key: Name
    #: fingerprint or name of the model that made the embedding; None where it is not known
    embedding: Name | None
    #: length of an embedding
    dim: Width
    hidden: Width
    attention: Width
    dropout: Share

    def __post_init__(self) -> None:
        check_fields(self, "spec")
        # Lists or, of a file, tuples: one of them, so that equal ones are equal.
        object.__setattr__(self, "classes", {target: tuple(names) for target, names in self.classes.items()})

    def n_out(self, target: str) -> int:
        """Number of outputs of a network."""
        return len(self.classes[target]) if self.classes else 1

    def build(self, target: str) -> SlideNet:
        """Build a network for one target, with weights drawn by torch's random state."""
        widths: dict[str, Any] = {"hidden": self.hidden, "attention": self.attention, "dropout": self.dropout}
        return SlideNet(self.aggregator, self.dim, self.n_out(target), **widths)


@dataclass(frozen=True, eq=False)
class SlideModel:
    """Predicts labels of slides from their tiles' embeddings; made by `sealst.tl.fit_slide` or `load_slide`.

    The networks of all folds are kept and their predictions averaged.

    Attributes
    ----------
    spec
        Task, targets, classes, aggregator and the embedding that is needed.
    members
        Per target the networks of the folds.
    evaluation
        What cross-validation found, `sealst.tl.SlideEvaluation`.
    test_evaluation
        What the slides that were kept out say about the averaged networks; None without any.
    provenance
        Parameters, patients, seed, folds and versions.
    """

    spec: SlideSpec
    members: Mapping[str, Sequence[SlideNet]] = field(repr=False)
    evaluation: SlideEvaluation
    test_evaluation: SlideEvaluation | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with any weight and with what is predicted."""
        digest = hashlib.sha256(json.dumps(asdict(self.spec), sort_keys=True).encode())
        for target in self.spec.targets:
            for net in self.members[target]:
                for name, tensor in sorted(net.trained_state().items()):
                    digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def to(self, device: str | torch.device | None) -> SlideModel:
        """Move all networks to a device; returns the model."""
        where = device if isinstance(device, torch.device) else resolve_device(device)
        for nets in self.members.values():
            for net in nets:
                net.to(where)
        return self

    def predict(self, features: np.ndarray, xy: np.ndarray | None = None, *, target: str | None = None) -> SlideOutput:
        """Prediction of one slide, averaged over the networks of the folds.

        Parameters
        ----------
        features
            Embeddings of all tiles (n_tiles, dim), finite.
        xy
            Centres of the tiles (n_tiles, 2), which aggregators that look at the order of tiles need.
        target
            Which target; default the first.

        Returns
        -------
        ``value``: probabilities (n_classes,) or one number (the prediction in its unit, or the log risk); ``attention``
        (n_tiles,), sums to 1.
        """
        target = self.spec.targets[0] if target is None else target
        check_choice("target", target, self.spec.targets)
        if features.ndim != 2 or features.shape[1] != self.spec.dim or not len(features):
            raise DataError(
                f"Embeddings must be (n_tiles >= 1, {self.spec.dim}), found {features.shape}; the model was fitted on "
                f"{self.spec.key!r}."
            )
        return averaged([net.predict(features, xy) for net in self.members[target]])

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the model into a folder of JSON, safetensors and CSV files.

        Parameters
        ----------
        path
            Folder; appears complete or not at all.
        overwrite
            Whether to replace an existing slide model.

        Returns
        -------
        The folder.
        """
        with new_folder(absolute(path), overwrite=overwrite, marker=_MEMBERS) as work:
            evaluations = {name: getattr(self, name) for name in _EVALUATIONS}
            config = {
                "format": _FORMAT,
                "kind": "slide",
                "sealst": __version__,
                "spec": asdict(self.spec),
                "n_members": {target: len(self.members[target]) for target in self.spec.targets},
                "fingerprint": self.fingerprint,
                "provenance": dict(self.provenance),
                "facts": {name: found.facts for name, found in evaluations.items() if found is not None},
            }
            write_json(work / _CONFIG, config)
            own = _named_tensors(self.spec, self.members)
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in own.items()}, work / _MEMBERS)
            for name, found in evaluations.items():
                if found is not None:
                    write_text(work / f"{name}.csv", found.table.to_csv(index=False))
                    write_text(work / f"{name}_predictions.csv", found.predictions.to_csv(index=False))
        return Path(path)

    def __repr__(self) -> str:
        spec = self.spec
        n = len(self.members[spec.targets[0]])
        return f"SlideModel: {spec.task} of {listed(spec.targets)} from {spec.key!r}, {spec.aggregator} x {n}"

    def _repr_html_(self) -> str:
        spec = self.spec
        made_by = "" if spec.embedding is None else f" of {spec.embedding}"
        facts = {"task": spec.task, "targets": listed(spec.targets), "embedding": f"{spec.key}{made_by}"}
        facts |= {f"classes of {target}": ", ".join(classes) for target, classes in spec.classes.items()}
        facts["aggregator"] = f"{spec.aggregator}, {len(self.members[spec.targets[0]])} networks per target"
        held_out = self.evaluation.summary().round(3).reset_index().to_dict("records")
        return as_html("SlideModel", facts, rows=[{str(k): v for k, v in row.items()} for row in held_out])


def averaged(outputs: Sequence[SlideOutput]) -> SlideOutput:
    """Mean of several networks' predictions and attention."""
    return SlideOutput(*(np.mean([getattr(o, name) for o in outputs], axis=0) for name in SlideOutput._fields))
