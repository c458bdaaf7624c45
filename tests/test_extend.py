"""The code of docs/contributing/extend.md runs, and what it adds works as what the package brings."""

from __future__ import annotations

import re
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

import sealst as sl
from sealst._core.losses import registry as losses
from sealst.io._stores import formats as _formats
from sealst.models._encoders import build as _build
from sealst.models._encoders import records as _registry

PAGE = Path(__file__).resolve().parents[1] / "docs" / "contributing" / "extend.md"


@pytest.fixture(scope="module")
def added() -> Any:
    """Names that the page's code defines; the registries are as before afterwards."""
    patch = pytest.MonkeyPatch()
    # The code adds to dicts that other modules have imported.
    before = [(d, set(d)) for d in (losses.RECONSTRUCTION, _formats.FORMATS)]
    names: dict[str, Any] = {}
    record, *others = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    exec(record, names)
    grown = MappingProxyType({**_registry.REGISTRY, names["spec"].key: names["spec"]})
    for module in (_build, _registry):
        patch.setattr(module, "REGISTRY", grown)
    exec("\n".join(others), names)
    yield names
    patch.undo()
    for registry, keys in before:
        for key in set(registry) - keys:
            del registry[key]


def test_an_encoder_is_listed_and_embeds(added):
    assert sl.models.list_encoders().loc["my-encoder", "licence"] == "Apache-2.0"
    with torch.inference_mode():
        assert added["encoder"](torch.rand(1, 3, 224, 224)).shape == (1, added["spec"].dim)


def test_a_loss_is_a_parameter_and_ignores_what_is_not_measured(added):
    assert added["params"].reconstruction == "log_cosh"
    pred, target = torch.tensor([[1.0, 5.0]], requires_grad=True), torch.zeros(1, 2)
    value = losses.RECONSTRUCTION["log_cosh"](pred, target, torch.tensor([[1.0, 0.0]]))
    value.backward()
    assert value.item() == pytest.approx(np.log(np.cosh(1.0)))
    assert pred.grad.tolist() == [[pytest.approx(np.tanh(1.0)), 0.0]]


def test_a_loss_trains(added, toy_section):
    sections = [toy_section(section=name, patient=name, seed=seed) for seed, name in enumerate("ab")]
    for section in sections:
        sl.pp.pair_crops(section, crop_um=64, crop_px=32)
        sl.pp.normalize(section)
    params = {"reconstruction": "log_cosh", "epochs": 1, "warmup_epochs": 1, "batch_size": 24, "views": 1}
    with pytest.warns(sl.SealstWarning, match="random weights"):
        model = sl.tl.finetune(
            sections, encoder="vit_tiny_patch16_224", pretrained=False, params=params, n_genes=8, device="cpu"
        )
    assert np.isfinite(model.history["train_gene"].dropna()).all()


def test_a_reader_is_recognised(added, tmp_path):
    arrays = {"image": np.full((200, 200, 3), 200, np.uint8), "counts": np.arange(8).reshape(4, 2), "mpp": 1.0}
    arrays |= {"xy": np.array([[50, 50], [150, 50], [50, 150], [150, 150]]), "genes": ["A", "B"]}
    np.savez(tmp_path / "s1.npz", **arrays)
    section = sl.io.read(tmp_path / "s1.npz", spot_um=55, patient="p", organ="breast", technology="own")
    assert section.tables["table"].X.toarray().tolist() == arrays["counts"].tolist()
    assert set(section.tables["table"].obs["section"]) == {"s1"}


def test_what_is_added_late_is_known_too(monkeypatch):
    """Parameters have been made before: which names there are is asked when one is given."""
    sl.tl.TrainParams()
    monkeypatch.setitem(losses.RECONSTRUCTION, "late", losses.RECONSTRUCTION["mse"])
    assert sl.tl.TrainParams(reconstruction="late").reconstruction == "late"
    monkeypatch.undo()
    with pytest.raises(sl.DataError, match="`params.reconstruction` must be one of"):
        sl.tl.TrainParams(reconstruction="late")
