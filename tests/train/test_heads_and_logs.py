"""Projection heads in training, the log as event files, and the compiled encoder."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch

import sealst as sl
from sealst._core.scores.metrics import recall_at_k, retrieval_ranks
from sealst._data.dataset import joined_expression
from sealst._train import module as _module
from sealst._train.callbacks import read_checkpoint
from sealst._train.engine import Run, run_stages
from sealst.models import ProjectionParams
from sealst.models._genes import resolve_gene_encoder

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


def test_the_progress_bar_shows_the_line_to_beat(capsys):
    data = toy.make_data(20)
    run_stages(
        toy.make_model(), toy.make_params(epochs=1), train=data, held_out=data, baseline={"pearson": 0.1234},
        run=Run(show=True),
    )  # fmt: skip
    shown = capsys.readouterr().err
    assert re.search(r"val_pearson=-?\d\.\d{3} \(frozen 0\.123\)", shown), shown
    # The frozen encoder has no recall to beat: it does not search by expression.
    assert re.search(r"val_recall@10=\d\.\d{3}[,\]]", shown), shown


def test_recall_among_very_many_spots_is_that_among_a_sample(monkeypatch):
    data = toy.make_data()
    pools = []
    ranks = _module.retrieval_ranks
    monkeypatch.setattr(_module, "retrieval_ranks", lambda *sides: pools.append(sides) or ranks(*sides))
    found = {}
    for limit in (64, 40):
        monkeypatch.setattr(_module, "MAX_POOL", limit)
        found[limit] = run_stages(
            toy.make_model(), toy.make_params(epochs=2, lr=1e-9), train=data, held_out=data, run=Run(seed=1, show=False)
        )  # fmt: skip
    assert [(len(image), len(gene)) for image, gene, _ in pools] == [(64, 64)] * 2 + [(40, 40)] * 2
    every, _, first, second = (image for image, *_ in pools)
    # Weights hardly move, so equal vectors are equal spots.
    np.testing.assert_allclose(first, second, atol=1e-4)
    assert all(np.abs(every - row).sum(1).min() < 1e-3 for row in first)
    np.testing.assert_array_equal(found[64]["val_pearson"], found[40]["val_pearson"])


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

    @pytest.mark.parametrize("counter", [0, 9])
    def test_a_run_that_goes_on_continues_its_curves(self, tmp_path, counter, monkeypatch):
        # The counter ends the names of event files: within one second, the tenth sorts before the ninth.
        from tensorboard.summary.writer import event_file_writer

        uids = itertools.count(counter)
        monkeypatch.setattr(event_file_writer, "_global_uid", SimpleNamespace(get=lambda: next(uids)))
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


def _organ_model():
    return toy.make_model(organs=("breast", "lung"))


def test_the_gene_decoder_is_told_the_organ_and_no_encoder_is():
    """Expression is the organ's own and nothing else: only its vector can tell the decoder."""
    organ = np.arange(64) % 3 - 1
    data = toy.make_data(extra={"organ": organ})
    level = np.array([0.0, 2.0, -2.0], np.float32)[organ + 1]
    data.expression = np.repeat(level[:, None], toy.N_GENES, 1)
    model = _organ_model()
    # The encoder sees no genes, so codes are all the same.
    params = toy.make_params(warmup_epochs=30, epochs=1, warmup_lr=1e-2, mask_genes=1.0, reconstruction="mse")
    run_stages(model, params, train=data, held_out=None, run=Run(seed=1, show=False))
    with torch.inference_mode():
        z = model.gene_encoder(torch.zeros(3, toy.N_GENES)).z
        # An unknown organ has the zero vector.
        vectors = torch.cat([torch.zeros(1, z.shape[1]), model.organ_embedding.weight])
        told = model.gene_encoder.decode(z + vectors).mean(1)
    np.testing.assert_allclose(told, [0, 2, -2], atol=0.7)


def test_vectors_of_organs_are_saved_with_their_names(tmp_path):
    model = _organ_model()
    with torch.no_grad():
        model.organ_embedding.weight.normal_()
    back = sl.models.load(model.save(tmp_path / "m"), device="cpu")
    assert back.organs == ("breast", "lung")
    assert torch.equal(back.organ_embedding.weight, model.organ_embedding.weight)
    assert back.fingerprint == model.fingerprint != _organ_model().fingerprint
    assert _organ_model().fingerprint != toy.make_model(organs=("lung", "breast")).fingerprint
    x = toy.make_data(4).expression
    np.testing.assert_array_equal(model.embed_genes(x), toy.make_model().embed_genes(x))


def test_tables_without_images_are_of_unknown_organ():
    data = toy.make_data(8, extra={"organ": np.array([0, 1] * 4)})
    joined = joined_expression(data, toy.make_data(3))
    assert joined.extra["organ"].tolist() == [0, 1] * 4 + [-1] * 3
    assert len(joined) == 11


def test_the_likelihood_of_counts_can_warm_up():
    data = toy.make_data(extra={"library": np.full(64, 3000.0, np.float32)})
    data.expression = np.abs(data.expression) + 0.5
    params = toy.make_params(reconstruction="nb", warmup_epochs=1, epochs=1)
    history = run_stages(toy.make_model(), params, train=data, held_out=None, run=Run(show=False))
    assert np.isfinite(history["train_loss"]).all()
    assert history["stage"].tolist() == ["warmup", "align"]


@pytest.mark.parametrize(("precision", "fused"), [("32-true", True), ("bf16-mixed", None)])
def test_steps_on_a_cpu_are_one_pass_where_clipping_allows_it(precision, fused):
    """Lightning refuses to clip gradients of a fused optimiser in mixed precision."""

    class Look(L.Callback):
        def on_train_start(self, trainer, _):
            self.found = trainer.optimizers[0].defaults["fused"]

    look = Look()
    run = Run(seed=1, show=False, trainer_kwargs={"callbacks": [look]})
    _, losses = toy.fit(toy.make_params(epochs=1, precision=precision), run)
    assert look.found is fused
    assert np.isfinite(losses).all()
