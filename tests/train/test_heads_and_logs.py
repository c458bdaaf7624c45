"""Projection heads in training, the log as event files, and the compiled encoder."""

from __future__ import annotations

import importlib.util
import logging
import shutil
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch

from sealst._core.metrics import recall_at_k, retrieval_ranks
from sealst._train._checkpoint import read_checkpoint
from sealst._train._engine import Run, run_stages
from sealst.models import ProjectionParams
from sealst.models._gene_encoder import resolve_gene_encoder

_spec = importlib.util.spec_from_file_location("toy", Path(__file__).with_name("toy.py"))
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_projections_learn_and_decide_recall(kind):
    model = toy.make_model(projection=ProjectionParams(kind, dim=5))
    start = {name: p.clone() for name, p in model.named_parameters() if "projection" in name}
    assert len(start) == {"linear": 4, "mlp": 8}[kind]
    data = toy.make_data()
    params = toy.make_params(epochs=10, lr=1e-2, weight_image=0.0, weight_gene=0.0)
    history = run_stages(model, params, train=data, held_out=data, run=Run(seed=1, show=False))
    assert history["train_contrast"].iloc[-1] < history["train_contrast"].iloc[0]
    for name, parameter in model.named_parameters():
        assert name not in start or not torch.equal(parameter, start[name]), name
    image = model.shared_images(model.embed_images(data.images))
    genes = model.shared_genes(model.embed_genes(data.expression))
    assert image.shape == genes.shape == (64, 5)
    ranks = retrieval_ranks(image, genes, np.arange(64))
    found = recall_at_k(ranks, (10,), 64)["R@10"]
    assert history["val_recall@10"].iloc[-1] == pytest.approx(found, abs=0.05)
    plain = retrieval_ranks(model.embed_images(data.images), model.embed_genes(data.expression), np.arange(64))
    assert np.median(ranks) < 0.8 * np.median(plain), "what was trained is the space behind the projections"


@pytest.mark.parametrize("kind", ["mlp", "mae", "transformer"])
def test_a_stopped_run_of_every_gene_encoder_goes_on_to_the_same_weights(kind, tmp_path):
    sizes = {"width": 8, "n_heads": 2} if kind == "transformer" else {}
    options = {
        "gene_encoder": resolve_gene_encoder({"kind": kind, "hidden": (8,), **sizes}),
        "projection": ProjectionParams("linear"),
    }
    params = toy.make_params(mask_genes=0.3, epochs=2)
    whole = toy.make_model(**options)
    expected = run_stages(whole, params, train=toy.make_data(), held_out=None, run=Run(seed=1, show=False))
    first = toy.make_model(**options)

    class Stop(L.Callback):
        def on_train_epoch_start(self, trainer, _):
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

    stopped = Run(seed=1, folder=tmp_path, show=False, seconds=0.0, trainer_kwargs={"callbacks": [Stop()]})
    with pytest.raises(KeyboardInterrupt):
        run_stages(first, params, train=toy.make_data(), held_out=None, run=stopped)
    state = read_checkpoint(tmp_path)
    assert state["segment"] == 1
    again = toy.make_model(**options)
    run = Run(seed=1, folder=tmp_path, state=state, show=False, seconds=0.0)
    history = run_stages(again, params, train=toy.make_data(), held_out=None, run=run)
    assert again.fingerprint == whole.fingerprint
    np.testing.assert_array_equal(history["train_loss"], expected["train_loss"])


def _events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    found = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs the extra `log`")
class TestEventFiles:
    def test_they_hold_the_log_of_both_stages(self, tmp_path):
        data, model = toy.make_data(), toy.make_model()
        params = toy.make_params(warmup_epochs=2)
        run = Run(seed=1, folder=tmp_path, show=False)
        history = run_stages(model, params, train=data, held_out=data, run=run, baseline={"pearson": 0.25})
        pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "metrics.csv"), history)
        assert sorted(p.name for p in (tmp_path / "tensorboard").iterdir()) == ["align", "warmup"]
        for stage, rows in history.groupby("stage"):
            events = _events(tmp_path / "tensorboard" / stage)
            named = [c for c in rows if c not in ("stage", "step") and rows[c].notna().all()]
            assert {"train_loss", "train_gene"} < set(events) == set(named)
            assert ("val_pearson" in events) == (stage == "align")
            for name in named:
                steps, values = zip(*events[name], strict=True)
                assert list(steps) == rows["step"].tolist()
                np.testing.assert_allclose(values, rows[name], rtol=1e-6)

    def test_a_run_that_goes_on_continues_its_curves(self, tmp_path):
        for epochs in (2, 4):
            run = Run(seed=1, folder=tmp_path, state=read_checkpoint(tmp_path), show=False, seconds=0.0)
            if run.state is not None:
                # As if it had been stopped after the first epoch: the second is repeated.
                run.state["segment"], run.state["step"] = 1, 4
                run.state["rows"] = run.state["rows"][:1]
            model = toy.make_model()
            run_stages(model, toy.make_params(epochs=epochs), train=toy.make_data(), held_out=None, run=run)
        steps = [step for step, _ in _events(tmp_path / "tensorboard" / "align")["train_loss"]]
        assert steps == [4, 8, 12, 16]

    @pytest.mark.parametrize("options", [{"logger": False}, None])
    def test_none_where_the_user_brings_a_logger_or_there_is_no_folder(self, tmp_path, options):
        folder = tmp_path if options else None
        run = Run(seed=1, folder=folder, show=False, trainer_kwargs=options or {})
        toy.fit(toy.make_params(epochs=1), run)
        assert not list(tmp_path.rglob("events.out*"))


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="torch.compile needs a C++ compiler")
def test_a_compiled_encoder_gives_the_same_losses():
    params = {"augmentation": "none", "batch_size": 32, "epochs": 2}
    plain, compiled = (
        toy.fit(toy.make_params(compile=on, **params), Run(seed=1, show=False))[1] for on in (False, True)
    )
    np.testing.assert_allclose(compiled, plain, rtol=1e-4)
    assert plain[0] != plain[1]
