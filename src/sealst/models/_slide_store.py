"""A slide model on disk: config.json, members.safetensors and what its evaluation found as CSV."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sealst._core.device import seeded
from sealst._core.scores.slide_evaluation import SlideEvaluation
from sealst._errors import CheckpointError, SealstError
from sealst._files import new_folder, write_json, write_text
from sealst._validate import listed
from sealst._version import __version__
from sealst.models._adapters.files import check_tensors
from sealst.models._slides.model import SlideModel, SlideSpec
from sealst.models._slides.net import SlideNet

_FORMAT = 1
_CONFIG, _MEMBERS = "config.json", "members.safetensors"
_EVALUATIONS = ("evaluation", "test_evaluation")
_NUMBERS = ("value", "low", "high", "time")
_COUNTS = ("n", "n_patients")


def save_slide(model: SlideModel, path: Path, *, overwrite: bool) -> Path:
    """Write to a temporary folder beside `path`, then rename; see `SlideModel.save`."""
    with new_folder(path, overwrite=overwrite, marker=_MEMBERS) as work:
        spec, members = model.spec, model.members
        evaluations = {name: getattr(model, name) for name in _EVALUATIONS}
        config = {
            "format": _FORMAT,
            "kind": "slide",
            "sealst": __version__,
            "spec": asdict(spec),
            "n_members": {target: len(members[target]) for target in spec.targets},
            "fingerprint": model.fingerprint,
            "provenance": dict(model.provenance),
            "facts": {name: found.facts for name, found in evaluations.items() if found is not None},
        }
        write_json(work / _CONFIG, config)
        tensors = {
            f"{t}.{i}.{name}": tensor.detach().cpu().contiguous()
            for t, target in enumerate(spec.targets)
            for i, net in enumerate(members[target])
            for name, tensor in net.trained_state().items()
        }
        save_file(tensors, work / _MEMBERS)
        for name, found in evaluations.items():
            if found is not None:
                write_text(work / f"{name}.csv", found.table.to_csv(index=False))
                write_text(work / f"{name}_predictions.csv", found.predictions.to_csv(index=False))
    return path


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
    folder = Path(path)
    if missing := [name for name in (_CONFIG, _MEMBERS) if not (folder / name).is_file()]:
        raise CheckpointError(f"{str(folder)!r} is not a complete slide model: it lacks {listed(missing)}.")
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        if (config.get("format"), config.get("kind")) != (_FORMAT, "slide"):
            raise CheckpointError(
                f"{str(folder)!r} holds format {config.get('format')!r} of kind {config.get('kind')!r}; this version "
                f"reads slide models of format {_FORMAT}."
            )
        model = _restored(folder, config)
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError, SealstError) as error:
        raise CheckpointError(f"The slide model in {str(folder)!r} is damaged: {error}") from error
    if model.fingerprint != config["fingerprint"]:
        raise CheckpointError(f"Weights in {str(folder)!r} do not match config.json's fingerprint; it is damaged.")
    return model.to(device)


def _restored(folder: Path, config: dict[str, Any]) -> SlideModel:
    given = dict(config["spec"])
    given["targets"] = tuple(given["targets"])
    given["classes"] = {target: tuple(names) for target, names in given["classes"].items()}
    spec = SlideSpec(**given)
    tensors = load_file(folder / _MEMBERS)
    members: dict[str, list[SlideNet]] = {}
    with seeded(0):
        for target in spec.targets:
            members[target] = [spec.build(target).eval() for _ in range(config["n_members"][target])]
    own = {
        f"{t}.{i}.{name}": tensor
        for t, target in enumerate(spec.targets)
        for i, net in enumerate(members[target])
        for name, tensor in net.trained_state().items()
    }
    check_tensors(_MEMBERS, own, tensors)
    for t, target in enumerate(spec.targets):
        for i, net in enumerate(members[target]):
            start = f"{t}.{i}."
            net.load_state_dict({k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)})
    facts = config["facts"]
    read = {name: _read_evaluation(folder, name, facts[name]) for name in _EVALUATIONS if name in facts}
    return SlideModel(spec, members, read["evaluation"], read.get("test_evaluation"), provenance=config["provenance"])


def _read_evaluation(folder: Path, name: str, facts: dict[str, Any]) -> SlideEvaluation:
    table, predictions = (
        pd.read_csv(folder / f"{name}{part}.csv", dtype=str, keep_default_na=False) for part in ("", "_predictions")
    )
    numbers = [*_NUMBERS, *(["truth", "prediction"] if facts["task"] != "classification" else [])]
    for frame in (table, predictions):
        for column in frame:
            if column in numbers or column.startswith("p_"):
                frame[column] = frame[column].replace("", "nan").astype(float)
            elif column in _COUNTS:
                frame[column] = frame[column].astype(int)
            elif column == "event":
                frame[column] = frame[column] == "True"
    return SlideEvaluation(table, predictions, facts)
