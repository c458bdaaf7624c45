"""Stopping and going on, several processes, small memory: none of it may change the result."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import SingleDeviceStrategy

import sealst as sl
from sealst._data.dataset import PairDataset
from sealst._train.callbacks import FILE, read_checkpoint, write_checkpoint
from sealst._train.engine import Run, run_stages
from sealst._train.module import AlignStage

SCRIPT = str(Path(__file__).with_name("toy.py"))
_spec = importlib.util.spec_from_file_location("toy", SCRIPT)
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)


def _python(options, **environment):
    command = [sys.executable, SCRIPT, json.dumps(options)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )


def _result(process):
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.strip().splitlines()[-1])


@pytest.mark.parametrize(("max_steps", "options"), [
    (500, {"warmup_epochs": 2, "mask_genes": 0.3, "noise": 0.1}),
    (2, {"accumulate": 3}),
    (2, {"kl": True, "augmentation": "hard"}),
])  # fmt: skip
def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path, max_steps, options):
    params = toy.make_params(**options)
    whole, losses = toy.fit(params, Run(seed=1, show=False, max_steps=max_steps), dropout=0.2)

    class Stop(Exception):
        pass

    def interrupted(after):
        """Go on with what is there, for some steps."""
        original, count = AlignStage.training_step, 0

        def step(self, batch, i):
            nonlocal count
            count += 1
            if count > after:
                raise Stop
            return original(self, batch, i)

        AlignStage.training_step = step
        try:
            state = read_checkpoint(tmp_path)
            run = Run(seed=1, folder=tmp_path, state=state, show=False, max_steps=max_steps, seconds=0.0)
            return toy.fit(params, run, dropout=0.2)
        except Stop:
            return None
        finally:
            AlignStage.training_step = original

    result = None
    for after in (5, 6, 7, 100):
        result = interrupted(after)
        if result is not None:
            break
    model, again = result
    assert model.fingerprint == whole.fingerprint
    np.testing.assert_array_equal(again, losses)


def test_a_killed_process_goes_on_to_the_same_weights(tmp_path):
    options = {"params": {"epochs": 6}, "folder": str(tmp_path / "run"), "max_steps": 2, "slow": 0.05, "dropout": 0.2}
    expected = _result(_python(options | {"folder": str(tmp_path / "whole"), "slow": 0}))
    rng = np.random.default_rng()
    kills = 0
    while True:
        process = _python(options | {"slow": 0.05 if kills < 2 else 0})
        assert process.stdout.readline().startswith("resumed at")
        if kills == 2:
            break
        time.sleep(0.5 + rng.uniform(0, 0.8))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += 1
    assert _result(process) == expected


def test_workers_and_chunks_change_nothing_but_rounding():
    expected, losses = toy.fit(toy.make_params(epochs=2), Run(seed=1, show=False), dropout=0.2)
    same, again = toy.fit(toy.make_params(epochs=2, num_workers=2), Run(seed=1, show=False), dropout=0.2)
    assert same.fingerprint == expected.fingerprint
    np.testing.assert_array_equal(again, losses)
    _, chunks = toy.fit(toy.make_params(epochs=2, chunk_size=5), Run(seed=1, show=False), dropout=0.2)
    np.testing.assert_allclose(chunks, losses, rtol=1e-4)


def _stop_at(monkeypatch, step, act):
    plain, steps = AlignStage.training_step, iter(range(1000))

    def stopping(self, *args):
        if next(steps) == step:
            act()
        return plain(self, *args)

    monkeypatch.setattr(AlignStage, "training_step", stopping)


@pytest.mark.parametrize("step", [1, 3])
def test_sigterm_in_a_step_is_no_success(step, monkeypatch):
    """In the last one, too (3), after which Lightning says nothing."""
    before = signal.getsignal(signal.SIGTERM)
    _stop_at(monkeypatch, step, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as stop:
        toy.fit(toy.make_params(epochs=1), Run(seed=1, show=False))
    assert stop.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_request_to_stop_while_a_checkpoint_is_written_finds_it_whole(tmp_path, monkeypatch, name):
    from sealst._process.signals import raised

    plain, came, saved = torch.save, [], []

    def save(state, file):
        # As torch does: what Python raises in the midst of its writing comes out as an error of its own.
        try:
            signal.raise_signal(getattr(signal, name))
            plain(state, file)
        except BaseException as error:
            raise RuntimeError("unexpected pos") from error
        saved.append(state["step"])

    monkeypatch.setattr(torch, "save", save)
    run = Run(seed=1, folder=tmp_path, show=False, max_steps=2, seconds=0.0)
    with pytest.raises((KeyboardInterrupt, SystemExit)), raised(came):
        toy.fit(toy.make_params(), run)
    assert came == [getattr(signal, name)]
    assert len(saved) == 1
    assert read_checkpoint(tmp_path)["step"] == saved[0]
    assert not list(tmp_path.glob(".checkpoint-*"))


def test_under_slurm_lightning_keeps_its_checkpoints_to_itself(monkeypatch):
    from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment

    from sealst._train.engine import _plugins

    assert _plugins(None) == []
    for name, value in {"SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train"}.items():
        monkeypatch.setenv(name, value)
    (found,) = _plugins(None)
    assert isinstance(found, SLURMEnvironment)
    assert not found.auto_requeue
    own = LightningEnvironment()
    assert _plugins(own) == _plugins([own]) == [own]


def _free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _of_two_processes(options):
    network = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    both = options | {"trainer_kwargs": {"devices": 2, "strategy": "ddp"}}
    ranks = [
        _python(both, RANK=str(r), LOCAL_RANK=str(r), GROUP_RANK="0", LOCAL_WORLD_SIZE="2", **network) for r in (0, 1)
    ]
    found = _result(ranks[0])
    _, err = ranks[1].communicate(timeout=240)
    assert ranks[1].returncode == 0, err[-3000:]
    return found


def test_two_processes_score_held_out_spots_as_one():
    """Each takes its share; a last batch that does not divide counts no spot twice."""
    # Steps too small to move a score: sums in another order must not either.
    options = {"params": {"epochs": 2, "lr": 1e-12, "patience": 2}, "held_out": 37, "init_values": 1.0}
    alone, both = _result(_python(options)), _of_two_processes(options)
    for name in ("val_pearson", "val_recall@10"):
        assert len(alone[name]) == 2
        assert np.isfinite(alone[name]).all()
        np.testing.assert_allclose(both[name], alone[name], rtol=0, atol=1e-6)


def test_two_processes_train_as_one_with_the_joint_batch(tmp_path):
    """Losses and outputs are those of one process: gathering has a gradient, statistics are of the joint batch."""
    options = {"params": {"epochs": 3, "lr": 0.02, "contrastive": "soft_clip", "warmup_epochs": 1, "chunk_size": 3}}
    alone = _result(_python(options | {"out": str(tmp_path / "one.pt")}))
    found = _of_two_processes(options | {"out": str(tmp_path / "two.pt")})
    np.testing.assert_allclose(found["losses"], alone["losses"], rtol=1e-4)
    data, outputs = toy.make_data(), []
    for name in ("one.pt", "two.pt"):
        model = toy.make_model()
        start = model.embed_images(data.images)
        model.load_trained(torch.load(tmp_path / name, weights_only=True))
        # Adam moves a bias before batch normalisation by noise alone; statistics of the batch take it out again.
        model.gene_encoder.train()
        genes = model.gene_encoder(torch.from_numpy(data.expression)).z.detach().numpy()
        outputs.append((model.embed_images(data.images), genes))
    assert np.abs(outputs[0][0] - start).max() > 1e-3
    for a, b in zip(*outputs, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=2e-3 * np.abs(a).max())


def _gradients(chunk_size, dropout=0.3):
    torch.manual_seed(0)
    model = toy.make_model(dropout)
    model.train()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    stage = AlignStage(model, toy.make_params(chunk_size=chunk_size), 1e-3, 10)
    stage.log = lambda *_, **__: None
    stage.trainer = type("Alone", (), {"world_size": 1})()
    batch = toy.make_data(20)[next(iter(toy_draw(20)))]
    loss = stage.training_step(batch, 0)
    loss.backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_adapters_are_dropped_out_in_training():
    assert _gradients(None)[0] != _gradients(None, dropout=0.0)[0]


def toy_draw(n):
    from sealst._train.sampler import InOrder

    return InOrder(n, n)


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 20, 64])
def test_gradients_by_chunks_are_those_of_the_whole_batch(chunk_size):
    whole, expected = _gradients(None)
    loss, found = _gradients(chunk_size)
    assert loss == pytest.approx(whole, rel=1e-5)
    assert set(found) == set(expected)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_chunks_keep_fewer_activations():
    """Bytes that autograd saves in the forward pass."""

    def saved(chunk_size):
        model = toy.make_model()
        model.train()
        # The class token alone would leave next to nothing to keep.
        model.encoder.spec = replace(model.encoder.spec, pool="mean")
        stage = AlignStage(model, toy.make_params(chunk_size=chunk_size), 1e-3, 10)
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            stage.embed(toy.make_data(32)[next(iter(toy_draw(32)))])
        return total

    pictures = 32 * 3 * toy.PX**2 * 4
    assert saved(None) > 1.5 * pictures
    # Only the chunks' inputs wait for the way back.
    assert saved(4) <= pictures


@pytest.mark.parametrize("chunk_size", [None, 5])
def test_chunks_run_each_crop_through_the_frozen_blocks_once(chunk_size):
    model = toy.make_model()
    model.train()
    frozen, adapted, before = [], [], model.n_trunk
    blocks = model.encoder.vit.blocks
    blocks[before - 1].register_forward_hook(lambda m, given, out: frozen.append(len(out)))
    blocks[before].register_forward_hook(lambda m, given, out: adapted.append(len(out)))
    stage = AlignStage(model, toy.make_params(chunk_size=chunk_size), 1e-3, 10)
    stage.embed(toy.make_data(20)[next(iter(toy_draw(20)))]).sum().backward()
    assert sum(frozen) == 20
    assert sum(adapted) == (20 if chunk_size is None else 40)


def test_training_stops_when_held_out_scores_do_not_rise_and_keeps_the_best(tmp_path):
    params = toy.make_params(epochs=30, patience=2, lr=0.05)
    model = toy.make_model()
    rng = np.random.default_rng(1)
    noise = make_noise(rng)
    history = run_stages(
        model, params, train=toy.make_data(), held_out=noise, run=Run(seed=0, folder=tmp_path, show=False)
    )
    best = int(history["val_pearson"].idxmax())
    assert len(history) == best + 3 < 30
    kept = run_stages_score(model, noise)
    assert kept == pytest.approx(history["val_pearson"].max(), abs=1e-4)
    assert read_checkpoint(tmp_path)["segment"] == 30


def test_held_out_scores_stand_in_the_parts_that_end_an_epoch(tmp_path):
    """Also in a run that goes on inside an epoch, where Lightning counts from the part it starts with."""
    params, data = toy.make_params(epochs=2), toy.make_data()

    class Stop(L.Callback):
        def on_train_epoch_start(self, trainer, stage):
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

    def history(**options):
        run = Run(show=False, max_steps=2, seconds=0.0, **options)
        return run_stages(toy.make_model(), params, train=data, held_out=data, baseline={"pearson": 0.1}, run=run)

    whole = history()
    assert whole["epoch"].tolist() == [0.5, 1, 1.5, 2]
    for name in ("val_pearson", "val_recall@10", "baseline_pearson"):
        assert whole[name].isna().tolist() == [True, False, True, False]
    with pytest.raises(KeyboardInterrupt):
        history(folder=tmp_path, trainer_kwargs={"callbacks": [Stop()]})
    again = history(state=read_checkpoint(tmp_path))
    np.testing.assert_array_equal(again["val_pearson"], whole["val_pearson"])


def make_noise(rng):
    data = toy.make_data(32)
    return PairDataset(data.images, rng.normal(size=data.expression.shape).astype(np.float32))


def run_stages_score(model, data):
    from sealst._core.scores.metrics import gene_pearson

    z = model.embed_images(data.images)
    with torch.inference_mode():
        predicted = model.image_head(torch.from_numpy(z)).numpy()
    return float(np.nanmean(gene_pearson(predicted, data.expression)))


def test_domain_loss_is_part_of_training_where_asked():
    data = toy.make_data(extra={"domain": np.arange(64) % 2})
    histories = [
        run_stages(toy.make_model(), toy.make_params(weight_domain=w), train=data, held_out=None, run=Run(show=False))
        for w in (0.0, 1.0)
    ]
    assert "train_domain" not in histories[0]
    assert np.isfinite(histories[1]["train_domain"]).all()


def test_hidden_genes_have_a_loss_of_their_own():
    params = toy.make_params(mask_genes=0.5, warmup_epochs=3)
    model = toy.make_model()
    history = run_stages(model, params, train=toy.make_data(), held_out=None, run=Run(seed=0, show=False))
    masked = history["train_masked"]
    assert np.isfinite(masked).all()
    assert masked.iloc[2] < masked.iloc[0]


def test_counts_have_a_likelihood_of_their_own():
    data = toy.make_data(extra={"library": np.full(64, 3000.0, np.float32)})
    data.expression = np.abs(data.expression) + 0.5
    history = run_stages(
        toy.make_model(), toy.make_params(reconstruction="nb", epochs=6, lr=1e-2), train=data, held_out=None,
        run=Run(show=False),
    )  # fmt: skip
    assert history["train_image"].iloc[-1] < history["train_image"].iloc[0]


def test_workers_do_not_change_the_result():
    params = {"views": 1, "augmentation": "soft"}
    found = {
        n: toy.fit(toy.make_params(num_workers=n, **params), Run(seed=1, show=False), dropout=0.1)[0].fingerprint
        for n in (0, 2)
    }
    assert found[0] == found[2]


def test_a_dead_worker_is_told_plainly(tmp_path):
    class Deadly(PairDataset):
        def __getitem__(self, draw):
            os.kill(os.getpid(), signal.SIGKILL)

    data = toy.make_data()
    deadly = Deadly(data.images, data.expression)
    with pytest.raises(sl.DataError, match=r"worker process of the loader died .*`resume=True`, with fewer"):
        run_stages(
            toy.make_model(), toy.make_params(num_workers=1), train=deadly, held_out=None,
            run=Run(seed=0, folder=tmp_path, show=False),
        )  # fmt: skip


def test_an_error_in_a_living_worker_is_told_as_it_is():
    class Broken(PairDataset):
        def __getitem__(self, draw):
            raise RuntimeError("the file is short")

    data = toy.make_data()
    with pytest.raises(RuntimeError, match="the file is short"):
        run_stages(
            toy.make_model(), toy.make_params(num_workers=1), train=Broken(data.images, data.expression), held_out=None,
            run=Run(show=False),
        )  # fmt: skip


def test_diverging_leaves_the_last_checkpoint(tmp_path):
    run = Run(seed=1, folder=tmp_path, show=False, seconds=0.0)
    toy.fit(toy.make_params(epochs=1), run)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(sl.DataError, match=r"The loss became nan in epoch 1 of stage 'align'. Lower `params.lr`"):
        toy.fit(toy.make_params(lr=1e30), run)
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize("name", ["gene_encoder", "log_theta"])
def test_weights_that_break_after_the_last_step_leave_the_last_checkpoint(tmp_path, name):
    """No loss has seen them yet."""
    data = toy.make_data(extra={"library": np.full(64, 3000.0, np.float32)})
    data.expression = np.abs(data.expression) + 0.5
    kept = []

    class Break(L.Callback):
        def on_train_batch_end(self, trainer, stage, outputs, batch, batch_idx):
            if trainer.global_step == 8:
                kept.append((tmp_path / FILE).read_bytes())
                broken = dict(stage.model.gene_encoder.named_parameters()) if name == "gene_encoder" else stage.own()
                with torch.no_grad():
                    next(iter(broken.values())).view(-1)[0] = float("nan")

    run = Run(folder=tmp_path, show=False, seconds=0.0, trainer_kwargs={"callbacks": [Break()]})
    with pytest.raises(
        sl.DataError, match=rf"Weights became NaN or infinite \('{name}.*\) in epoch 2 of stage 'align'"
    ):
        run_stages(toy.make_model(), toy.make_params(reconstruction="nb"), train=data, held_out=None, run=run)
    assert kept == [(tmp_path / FILE).read_bytes()]
    assert read_checkpoint(tmp_path)["step"] == 4


def test_the_scale_of_the_loss_goes_on_too(tmp_path, monkeypatch):
    """What float16 scales by is a state of Lightning's precision; on a processor there is none, so one is played."""
    loaded = []
    monkeypatch.setattr(Precision, "state_dict", lambda self: {"scale": 32768.0, "_growth_tracker": 7})
    monkeypatch.setattr(Precision, "load_state_dict", lambda self, state: loaded.append(state))

    class Stop(L.Callback):
        def on_train_epoch_start(self, trainer, stage):
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

    run = Run(folder=tmp_path, show=False, seconds=0.0, trainer_kwargs={"callbacks": [Stop()]})
    with pytest.raises(KeyboardInterrupt):
        toy.fit(toy.make_params(), run)
    state = read_checkpoint(tmp_path)
    toy.fit(toy.make_params(), Run(state=state, show=False))
    assert loaded == [{"scale": 32768.0, "_growth_tracker": 7}]
    # Checkpoints of before have none.
    toy.fit(toy.make_params(), Run(state={k: v for k, v in state.items() if k != "precision"}, show=False))
    assert len(loaded) == 1


def test_all_stages_train_on_the_device_that_was_asked_for(monkeypatch):
    """Lightning leaves a trained model on the CPU, so the device of the model after a stage says nothing."""
    from sealst._train import engine as _engine

    class Model(type(toy.make_model())):
        moved: ClassVar[list] = []
        place = torch.device("cuda", 1)

        @property
        def device(self):
            return self.place

        def to(self, where):
            self.moved.append(where)
            self.place = where
            return self

    class Trainer:
        asked: ClassVar[list] = []
        received_sigterm = False

        def __init__(self, **options):
            self.asked.append((options["accelerator"], options["devices"]))

        def fit(self, stage, *_):
            stage.model.place = torch.device("cpu")

    monkeypatch.setattr(_engine.L, "Trainer", Trainer)
    monkeypatch.setattr(_engine, "has_bf16", lambda _: False)
    model = toy.make_model()
    model.__class__ = Model
    run_stages(model, toy.make_params(warmup_epochs=1), train=toy.make_data(), held_out=None, run=Run(show=False))
    assert Trainer.asked == [("gpu", [1])] * 2
    assert Model.moved == [torch.device("cuda", 1)] * 3


def test_processes_that_lightning_counts_otherwise_do_not_train(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(sl.DataError, match=r"process 1 of 2, but Lightning takes it for 0 of 1. Let `trainer_kwargs`"):
        toy.fit(toy.make_params(), Run(show=False, trainer_kwargs={"strategy": SingleDeviceStrategy("cpu")}))


def test_full_disk_keeps_the_old_checkpoint(tmp_path):
    code = f"""
import resource, signal
from pathlib import Path
import torch
import sealst as sl
from sealst._train.callbacks import read_checkpoint, write_checkpoint
folder = Path({str(tmp_path)!r})
write_checkpoint(folder, {{"x": torch.zeros(10)}})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_checkpoint(folder, {{"x": torch.zeros(1_000_000)}})
except sl.CheckpointError as error:
    assert "could not be written" in str(error) and "The last one is still there" in str(error), error
else:
    raise SystemExit("no error")
assert read_checkpoint(folder)["x"].shape == (10,)
assert [p.name for p in folder.iterdir()] == ["checkpoint.pt"]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_what_a_killed_process_left_of_a_checkpoint_is_removed(tmp_path):
    left = tmp_path / ".checkpoint.pt-0123abcd"
    left.mkdir()
    (left / ".alive").touch()
    (left / "checkpoint.pt").write_bytes(b"half")
    write_checkpoint(tmp_path, {"x": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_checkpoints_hold_no_code(tmp_path):
    write_checkpoint(tmp_path, {"x": torch.ones(2), "rows": [{"a": 1.0}], "best": -float("inf")})
    assert read_checkpoint(tmp_path)["rows"] == [{"a": 1.0}]
    torch.save({"x": SCRIPT.__class__, "f": os.system}, tmp_path / FILE)
    with pytest.raises(sl.CheckpointError, match="is damaged"):
        read_checkpoint(tmp_path)
    (tmp_path / FILE).write_bytes(b"no")
    with pytest.raises(sl.CheckpointError, match="is damaged"):
        read_checkpoint(tmp_path)
    (tmp_path / FILE).unlink()
    assert read_checkpoint(tmp_path) is None
