"""What every way of pooling tiles promises; a new one needs no new test."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

import sealst as sl
from sealst._core.scores.slide_evaluation import SlideEvaluation
from sealst._core.seeds import seeded
from sealst._errors import CheckpointError, DataError
from sealst.models._slides.aggregators import AGGREGATORS, build_aggregator, check_aggregator
from sealst.models._slides.model import SlideModel, SlideNet, SlideSpec

pytest.importorskip("torchmil")
DIM, N = 6, 11
every = pytest.mark.parametrize("name", sorted(AGGREGATORS))


def net_of(name: str, n_out: int = 3, seed: int = 0) -> SlideNet:
    with seeded(seed):
        return SlideNet(name, DIM, n_out, hidden=8, attention=4, dropout=0.1).eval()


def tiles(n: int = N, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, DIM)).astype(np.float32)


def places(n: int = N) -> np.ndarray:
    return np.column_stack([np.arange(n) % 4, np.arange(n) // 4]) * 100.0


@every
@pytest.mark.parametrize("n_out", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, N])
def test_shapes(name: str, n_out: int, n: int) -> None:
    found = net_of(name, n_out).predict(tiles(n), places(n))
    assert found.value.shape == (n_out,)
    assert found.attention.shape == (n,)
    assert (found.attention >= 0).all()
    assert found.attention.sum() == pytest.approx(1)
    if n_out > 1:
        assert found.value.sum() == pytest.approx(1)


@every
def test_deterministic(name: str) -> None:
    first, again, other = net_of(name), net_of(name), net_of(name, seed=1)
    x = tiles()
    assert np.array_equal(first.predict(x, None).value, again.predict(x, None).value)
    assert not np.allclose(first.predict(x, None).value, other.predict(x, None).value)


@every
def test_order_of_rows_does_not_matter(name: str) -> None:
    net, x, xy = net_of(name), tiles(), places()
    order = np.random.default_rng(1).permutation(N)
    plain, shuffled = net.predict(x, xy), net.predict(x[order], xy[order])
    np.testing.assert_allclose(shuffled.value, plain.value, atol=1e-5)
    np.testing.assert_allclose(shuffled.attention, plain.attention[order], atol=1e-5)
    # Without positions only those that look at the order may differ.
    if not AGGREGATORS[name].ordered:
        np.testing.assert_allclose(net.predict(x[order], None).value, plain.value, atol=1e-5)


@every
def test_every_weight_and_every_tile_gets_a_gradient(name: str) -> None:
    with seeded(0):
        pool = build_aggregator(name, DIM, 2, hidden=8, attention=4, dropout=0.0).train()
    x = torch.as_tensor(tiles()).requires_grad_()
    pooled = pool(x, 1)
    loss = sum(torch.nn.functional.cross_entropy(s[None], torch.tensor([1])) for s in pooled.streams)
    (loss + (0 if pooled.extra is None else pooled.extra)).backward()
    # torchmil's layer has a norm before its MLP also where it has no MLP.
    lost = [n for n, p in pool.named_parameters() if p.grad is None and "norm2" not in n]
    assert not lost
    assert x.grad is not None
    assert (x.grad.abs().sum(dim=1) > 0).sum() >= N // 2


@every
def test_saved_model_predicts_the_same(name: str, tmp_path) -> None:
    spec = SlideSpec("classification", ("y",), {"y": ("a", "b")}, None, name, "X_seal", "f" * 16, DIM, 8, 4, 0.1)
    with seeded(0):
        nets = [spec.build("y").eval() for _ in range(2)]
    import pandas as pd

    table = pd.DataFrame([{"fold": "", "method": "X_seal", "target": "y", "metric": "auroc", "value": 0.1 + 0.2,
                           "low": np.nan, "high": 1.0, "n": 3, "n_patients": 2}])  # fmt: skip
    predictions = pd.DataFrame([{"slide": "01", "patient": "NA", "fold": "0", "method": "X_seal", "target": "y",
                                 "truth": "1", "prediction": "1", "p_1": 1 / 3}])  # fmt: skip
    evaluation = SlideEvaluation(table, predictions, {"task": "classification", "targets": ["y"]})
    model = SlideModel(spec, {"y": nets}, evaluation, provenance={"seed": 0})
    loaded = sl.models.load_slide(model.save(tmp_path / "m"))
    assert loaded.fingerprint == model.fingerprint
    assert loaded.spec == spec
    for a, b in zip(loaded.predict(tiles(), places()), model.predict(tiles(), places()), strict=True):
        np.testing.assert_array_equal(a, b)
    pd.testing.assert_frame_equal(loaded.evaluation.table, table)
    pd.testing.assert_frame_equal(loaded.evaluation.predictions, evaluation.predictions)


def test_damaged_folders_are_refused(tmp_path) -> None:
    test_saved_model_predicts_the_same("mean", tmp_path)
    folder = tmp_path / "m"
    with pytest.raises(CheckpointError, match="exists"):
        sl.models.load_slide(folder).save(folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"fingerprint": "', '"fingerprint": "0'))
    with pytest.raises(CheckpointError, match="do not match"):
        sl.models.load_slide(folder)
    (folder / "config.json").write_text(config.replace('"hidden": 8', '"hidden": 9'))
    with pytest.raises(CheckpointError, match="has shape"):
        sl.models.load_slide(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        sl.models.load_slide(folder)
    (folder / "members.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks 'members.safetensors'"):
        sl.models.load_slide(folder)


def test_wrong_embeddings_and_names() -> None:
    spec = SlideSpec("regression", ("y",), {}, None, "mean", "X_seal", None, DIM, 8, 4, 0.1)
    empty = SlideEvaluation(pd.DataFrame(), pd.DataFrame())
    model = SlideModel(spec, {"y": [spec.build("y")]}, empty)
    with pytest.raises(DataError, match=r"must be \(n_tiles >= 1, 6\), found \(3, 5\)"):
        model.predict(np.zeros((3, 5), dtype=np.float32))
    with pytest.raises(DataError, match="`target` must be one of 'y'"):
        model.predict(tiles(), target="z")
    with pytest.raises(DataError, match="`aggregator` must be one of"):
        build_aggregator("nothing", DIM, 1, hidden=8, attention=4, dropout=0.0)
    assert set(sl.models.list_aggregators().index) == set(AGGREGATORS)


def test_clam_clusters_by_class_only_while_training() -> None:
    with seeded(0):
        pool = build_aggregator("clam", DIM, 3, hidden=8, attention=4, dropout=0.0)
    x = torch.as_tensor(tiles())
    assert pool(x).extra is None
    losses = [float(pool(x, label).extra) for label in range(3)]
    assert len(set(losses)) == 3


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torchmil.models", None)
    with pytest.raises(sl.OrderError, match=r'pip install "sealst\[slide\]"'):
        build_aggregator("abmil", DIM, 1, hidden=8, attention=4, dropout=0.0)
    with pytest.raises(sl.OrderError, match=r'pip install "sealst\[slide\]"'):
        check_aggregator("abmil")
    check_aggregator("mean")
