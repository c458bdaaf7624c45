from __future__ import annotations

import json
import os

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import torch
from spatialdata.transformations import get_transformation

import sealst as sl
from sealst import _section
from sealst._train.params import choose


def two(ready):
    return [ready(section="a", patient="p1"), ready(section="b", patient="p2", seed=1)]


def test_training_lowers_the_loss_and_changes_only_what_it_should(ready, finetune, fast):
    sections = two(ready)
    model = finetune(sections, params=fast | {"epochs": 8})
    align = model.history[model.history["stage"] == "align"]
    assert align["train_loss"].iloc[-1] < align["train_loss"].iloc[0]
    assert list(model.history["stage"].unique()) == ["warmup", "align"]
    assert {"train_contrast", "train_gene", "train_image"} <= set(align.columns)
    base = sl.models.build_encoder("vit_tiny_patch16_224", pretrained=False)
    frozen = {k.replace(".base_layer", ""): v for k, v in model.encoder.vit.state_dict().items() if "lora_" not in k}
    assert all(torch.equal(v, frozen[k]) for k, v in base.vit.state_dict().items())
    moved = [p for n, p in model.encoder.named_parameters() if "lora_B" in n]
    assert all(p.abs().sum() > 0 for p in moved)
    assert not model.training


def test_markers_can_be_put_into_the_panel(ready, finetune):
    sections = two(ready)
    plain = finetune(sections, n_genes=3).panel
    marker = next(str(g) for g in sections[0].tables["table"].var_names if g not in plain.genes)
    panel = finetune(sections, n_genes=3, include=[marker]).panel
    assert (panel.genes[0], len(panel)) == (marker, 3)
    with pytest.raises(TypeError, match=r"`sections` must be SpatialData.*`sl.io.read_collection\('sections'\)`"):
        finetune("sections")
    with pytest.raises(sl.DataError, match=r"`include` adds genes to the default panel, but `panel=` is given, too"):
        finetune(sections, panel=plain, include=[marker])


def test_same_seed_same_model_other_seed_another(ready, finetune):
    sections = two(ready)
    a, b, c = (finetune(sections, seed=s).fingerprint for s in (3, 3, 4))
    assert a == b != c


def test_callers_random_state_and_data_are_left_alone(ready, finetune):
    sections = two(ready)
    before = sections[0].tables["table"].copy()
    torch.manual_seed(9)
    np.random.seed(9)  # noqa: NPY002
    expected = torch.rand(2), np.random.rand(2)  # noqa: NPY002
    torch.manual_seed(9)
    np.random.seed(9)  # noqa: NPY002
    finetune(sections)
    assert torch.equal(torch.rand(2), expected[0])
    np.testing.assert_array_equal(np.random.rand(2), expected[1])  # noqa: NPY002
    after = sections[0].tables["table"]
    assert set(after.obsm) == set(before.obsm)
    assert set(after.uns["sealst"]) == set(before.uns["sealst"])


def test_cached_and_plain_training_agree_without_augmentation(ready, finetune, fast):
    sections = two(ready)
    same = fast | {"augmentation": "none", "views": 1, "warmup_epochs": 0, "epochs": 3}
    adapter = {"dropout": 0.0, "n_blocks": 1}
    a = finetune(sections, params=same | {"cache": "trunk"}, adapter=adapter)
    b = finetune(sections, params=same | {"cache": "none"}, adapter=adapter)
    np.testing.assert_allclose(a.history["train_loss"], b.history["train_loss"], rtol=5e-3)


@pytest.mark.parametrize("options", [{"contrastive": "siglip"}, {"contrastive": "soft_clip", "kl": True},
                                     {"reconstruction": "huber", "augmentation": "hard"},
                                     {"layer": "lognorm", "accumulate": 2}])  # fmt: skip
def test_variants_train(ready, finetune, fast, options):
    model = finetune(two(ready), params=fast | options)
    assert np.isfinite(model.history["train_loss"]).all()
    assert ("train_kl" in model.history) == bool(options.get("kl"))


def test_validation_is_reported_every_epoch_and_never_trained_on(ready, finetune):
    held = ready(section="c", patient="p3", seed=2)
    with_it = finetune(two(ready), validation=held)
    align = with_it.history[with_it.history["stage"] == "align"]
    assert align[["val_pearson", "val_recall@10"]].notna().all().all()
    assert finetune(two(ready)).fingerprint == with_it.fingerprint
    assert with_it.provenance["validation"] == ["c"]
    assert with_it.provenance["patients"] == ["p1", "p2"]


def test_run_folder(ready, finetune, tmp_path):
    model = finetune(two(ready), run_dir=tmp_path / "run")
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert names - {"tensorboard", ".lock"} == {"run.json", "metrics.csv", "training.png", "model"}
    logged = pd.read_csv(tmp_path / "run" / "metrics.csv")
    np.testing.assert_allclose(logged["train_loss"], model.history["train_loss"])
    back = sl.models.load(tmp_path / "run" / "model", device="cpu")
    assert back.fingerprint == model.fingerprint
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["training"]["sections"] == ["a", "b"]
    assert config["training"]["params"]["epochs"] == 2
    with pytest.raises(sl.DataError, match="exists and is not empty; name a new folder.*`resume=True` goes on with it"):
        finetune(two(ready), run_dir=tmp_path / "run")
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["run"]["params"]["epochs"] == 2
    assert {"torch", "timm", "python"} <= set(run["session"])


def test_a_finished_run_is_returned_and_another_refused(ready, finetune, tmp_path, fast, monkeypatch):
    sections = two(ready)
    model = finetune(sections, run_dir=tmp_path / "run", resume=True)
    monkeypatch.setattr("sealst.tl._finetune.finetune.run_stages", lambda *a, **k: pytest.fail("training started"))
    again = finetune(sections, run_dir=tmp_path / "run", resume=True)
    assert again.fingerprint == model.fingerprint
    assert again.history.equals(pd.read_csv(tmp_path / "run" / "model" / "history.csv"))
    with pytest.raises(sl.DataError, match=r"holds another run; it differs in 'params.lr'\. Repeat its call"):
        finetune(sections, run_dir=tmp_path / "run", resume=True, params=fast | {"lr": 0.5})
    with pytest.raises(sl.DataError, match=r"it differs in 'params.negatives', 'sections', 'expression'"):
        finetune(sections[:1], run_dir=tmp_path / "run", resume=True, panel=model.panel)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(sl.DataError, match=r"holds no run \('notes.txt'\)"):
        finetune(sections, run_dir=tmp_path / "other", resume=True)


def test_other_crops_of_the_same_spots_are_another_run(ready, finetune, tmp_path, fast):
    sections, run = two(ready), {"run_dir": tmp_path / "run", "resume": True}
    first = finetune(sections, **run)
    held = json.loads((tmp_path / "run" / "run.json").read_text())["run"]["crops"]
    assert set(held) == {"a", "b"}
    # Squares that moved, for the same expression, size and names.
    b = sections[1]
    squares = b.shapes[b.tables["table"].uns["sealst"]["crops"]["b_spots"]["shapes_key"]]
    squares["geometry"] = squares.geometry.translate(9, 0)
    with pytest.raises(sl.DataError, match=r"holds another run; it differs in 'crops\.b'\. Repeat its call"):
        finetune(sections, **run)
    squares["geometry"] = squares.geometry.translate(-9, 0)
    assert finetune(sections, **run).fingerprint == first.fingerprint
    # The same squares of a picture of which one pixel is another.
    (key,) = b.images
    levels = [np.array(level) for level in _section.image_levels(b.images[key])]
    x, y = squares.geometry.iloc[0].centroid.coords[0]
    for i, level in enumerate(levels):
        level[:, int(y) >> i, int(x) >> i] ^= 128
    systems = get_transformation(b.images[key], get_all=True)
    del b.images[key]
    b.images[key] = _section.multiscale([da.from_array(level) for level in levels], systems)
    with pytest.raises(sl.DataError, match=r"it differs in 'crops\.b'\."):
        finetune(sections, **run)


def stop_here(*args):
    raise KeyboardInterrupt


def test_what_only_rounds_otherwise_is_no_other_run_and_is_said(ready, finetune, tmp_path, fast, monkeypatch):
    sections, run = two(ready), {"run_dir": tmp_path / "run", "resume": True}
    params = fast | {"warmup_epochs": 0, "cache": "none"}
    whole = finetune(sections, params=params)
    monkeypatch.setattr("sealst._train.engine.Run.seconds", 0.0, raising=False)
    with monkeypatch.context() as patch:
        patch.setattr("sealst.tl._finetune.finetune.finish", stop_here)
        with pytest.raises(KeyboardInterrupt):
            finetune(sections, params=params, **run)
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    threads, kept = torch.get_num_threads(), {"device": "cpu", "processes": 1, "torch": torch.__version__}
    assert written["rounding"] == kept | {"threads": threads, "chunk_size": None}
    written["rounding"]["threads"] = 64
    (tmp_path / "run" / "run.json").write_text(json.dumps(written))
    said = []
    monkeypatch.setattr("sealst.tl._finetune.run_folder.warn", said.append)
    model = finetune(sections, params=params | {"chunk_size": 4}, **run)
    (line,) = said
    assert f"begun otherwise: threads was 64, is {threads}; chunk_size was None, is 4. Its weights" in line
    np.testing.assert_allclose(model.history["train_loss"], whole.history["train_loss"], rtol=1e-4)


@pytest.fixture
def stored(tmp_path):
    """Write sections to stores, in this order of names, and open them as a collection."""

    def write(sections):
        for number, sdata in enumerate(sections):
            sdata.write(tmp_path / f"{number}.zarr")
        return sl.io.Collection([tmp_path / f"{number}.zarr" for number in range(len(sections))])

    return write


def test_the_order_of_the_sections_is_not_part_of_a_training(ready, finetune, stored):
    a, b = two(ready)
    held = [ready(section="v", patient="p8", seed=4), ready(section="w", patient="p9", seed=5)]
    model = finetune([a, b], validation=held)
    again = finetune([b, a], validation=held[::-1])
    assert again.fingerprint == model.fingerprint
    assert again.provenance == model.provenance
    assert again.history.equals(model.history)
    # A collection too.
    assert finetune(stored([b, a]), validation=held).fingerprint == model.fingerprint


def test_a_run_folder_is_of_one_process(ready, finetune, tmp_path, monkeypatch):
    """The second is told who has it before anything is read; the scratch of a living run stays."""
    from sealst._process.locks import hold_run

    run = tmp_path / "run"
    run.mkdir()
    (run / ".cache-0-living").mkdir()
    monkeypatch.setattr("sealst.tl._finetune.finetune.build_encoder", lambda *a, **k: pytest.fail("went on"))
    said = rf"`run_dir` '.*run' is in use by process {os.getpid()} on .* since .*stop it, then repeat the call"
    with hold_run(run):
        for resume in (True, False):
            with pytest.raises(sl.InUseError, match=said):
                finetune(two(ready), run_dir=run, resume=resume)
    assert (run / ".cache-0-living").is_dir()
    # Processes of one run do not stand in each other's way.
    with hold_run(run, rank=1), pytest.raises(pytest.fail.Exception, match="went on"):
        finetune(two(ready), run_dir=run, resume=True)
    assert not (run / ".cache-0-living").exists()


def test_an_interrupted_run_goes_on(ready, finetune, tmp_path, fast, monkeypatch):
    from sealst._train.module import AlignStage

    sections, params = two(ready), fast | {"epochs": 3}
    whole = finetune(sections, params=params)
    plain, count = AlignStage.training_step, 0

    def stop(self, batch, i):
        nonlocal count
        count += 1
        if count == 12:
            raise KeyboardInterrupt
        return plain(self, batch, i)

    monkeypatch.setattr("sealst._train.engine.Run.seconds", 0.0, raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(AlignStage, "training_step", stop)
        with pytest.raises(KeyboardInterrupt):
            finetune(sections, params=params, run_dir=tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint.pt").is_file()
    (tmp_path / "run" / ".cache-0-left").mkdir()
    model = finetune(sections, params=params, run_dir=tmp_path / "run", resume=True)
    assert model.fingerprint == whole.fingerprint
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert names - {"tensorboard", ".lock"} == {"run.json", "metrics.csv", "training.png", "model"}


def test_parameters_come_from_a_file(ready, finetune, tmp_path, fast):
    path = tmp_path / "params.yaml"
    path.write_text("\n".join(f"{k}: {v}" for k, v in fast.items()))
    assert finetune(two(ready), params=path).fingerprint == finetune(two(ready), params=fast).fingerprint
    path.write_text("- 3")
    with pytest.raises(sl.DataError, match="must hold names and values, such as 'epochs: 5'; found \\[3\\]"):
        finetune(two(ready), params=path)
    with pytest.raises(sl.DataError, match="Parameters could not be read from 'nowhere.yaml'"):
        finetune(two(ready), params="nowhere.yaml")


def test_expression_without_images_joins_the_warm_up(ready, finetune, fast):
    sections = two(ready)
    extra = ready(section="x", patient="p8", seed=7).tables["table"].copy()
    del extra.layers["context"]
    params = fast | {"warmup_epochs": 2}
    without, with_more = finetune(sections, params=params), finetune(sections, params=params, warmup=extra)
    steps = [m.history.query("stage == 'warmup'")["step"].iloc[-1] for m in (without, with_more)]
    assert steps[1] > steps[0]
    with pytest.raises(sl.DataError, match="say how long with `params.warmup_epochs`"):
        finetune(sections, params=fast | {"warmup_epochs": 0}, warmup=[extra])
    with pytest.raises(TypeError, match="`warmup` must hold AnnData, found SpatialData"):
        finetune(sections, params=params, warmup=sections)


def test_the_order_of_tables_is_not_part_of_a_warm_up(ready, finetune, fast, tmp_path):
    sections, params = two(ready), fast | {"warmup_epochs": 1, "epochs": 1}
    one, other = (ready(section=name, patient="p8", seed=i).tables["table"].copy() for i, name in enumerate("xy", 7))
    # One that names neither sections nor patients, and some of whose genes are not measured.
    other = other[:, 1:].copy()
    other.obs = other.obs[[]].set_axis([str(i) for i in range(other.n_obs)])
    twin = other.copy()
    twin.layers["context"] = twin.layers["context"] * 2
    model = finetune(sections, params=params, warmup=[one, other, twin], run_dir=tmp_path / "run")
    again = finetune(sections, params=params, warmup=[twin, other, one])
    assert again.fingerprint == model.fingerprint
    # Neither is it of what a run goes on with.
    resumed = finetune(sections, params=params, warmup=[other, one, twin], run_dir=tmp_path / "run", resume=True)
    assert resumed.fingerprint == model.fingerprint
    with pytest.raises(sl.DataError, match="`warmup` is empty"):
        finetune(sections, params=params, warmup=[])


def test_counts_of_tables_join_the_warm_up_with_a_loss_on_counts(ready, finetune, fast):
    sections = two(ready)
    extra = ready(section="x", patient="p8", seed=7).tables["table"].copy()
    params = fast | {"warmup_epochs": 2, "reconstruction": "nb"}
    history = finetune(sections, params=params, warmup=extra).history
    assert np.isfinite(history["train_gene"]).all()
    del extra.layers["counts"]
    with pytest.raises(sl.DataError, match=r"needs `.layers\['counts'\]` of every table of `warmup`"):
        finetune(sections, params=params, warmup=extra)


def test_the_frozen_encoder_is_the_line_to_beat(ready, finetune):
    held = ready(section="c", patient="p3", seed=3)
    history = finetune(two(ready), validation=held).history
    line = history["baseline_pearson"].dropna().unique()
    assert len(line) == 1
    assert -1 <= line[0] <= 1


@pytest.mark.parametrize(("options", "text"), [
    ({"params": {"patience": 2}}, "`params.patience` stops by held-out scores; pass `validation=`"),
    ({"resume": True}, "`resume=True` needs the `run_dir`"),
    ({"trainer_kwargs": {"precision": "16-mixed"}}, "must not hold 'precision': .* are fields of `params`"),
    ({"params": {"weight_domain": 1.0, "domain": "organ"}}, "needs at least two of `domain` 'organ'; there is one"),
    ({"params": {"balance": 2}}, "`params.balance` must be at most 1"),
    ({"params": {"batch_size": 4}, "trainer_kwargs": {"devices": 8}}, "is 4, fewer than the 8 processes"),
])  # fmt: skip
def test_options_that_do_not_fit_are_refused(ready, finetune, options, text):
    with pytest.raises(sl.DataError, match=text):
        finetune(two(ready), **options)


def test_sections_are_balanced_and_told_apart_less(ready, finetune, fast):
    options = fast | {"balance": 1.0, "weight_domain": 0.5, "domain": "patient"}
    history = finetune(two(ready), params=options).history
    assert np.isfinite(history["train_domain"].iloc[-1])


def test_random_weights_are_announced(ready, fast):
    with pytest.warns(sl.SealstWarning, match="starts from random weights, as asked"):
        sl.tl.finetune(two(ready), encoder="vit_tiny_patch16_224", pretrained=False, n_genes=8, params=fast,
                       gene_encoder={"hidden": (8,)}, device="cpu")  # fmt: skip


def _no_crops(s):
    del s[0].tables["table"].uns["sealst"]["crops"]


def _no_layers(s):
    del s[0].tables["table"].layers["context"]


def _other_crops(s):
    sl.pp.pair_crops(s[0], crop_um=32, crop_px=32)


BAD = [
    (_no_crops, {}, sl.OrderError, r"Run `sl.pp.pair_crops\(sdata\)` first"),
    (_no_layers, {}, sl.SealstError, r"sl.pp.normalize\("),
    (_other_crops, {}, sl.DataError, r"crops of different size: \[\(32.0, 32\), \(64.0, 32\)\]"),
    (None, {"params": {"epoch": 1}}, sl.DataError, "`params` has no field 'epoch'; known"),
    (None, {"params": {"lr": -1}}, sl.DataError, "`params.lr` must be a positive number"),
    (None, {"params": {"contrastive": "infonce"}}, sl.DataError, "`params.contrastive` must be one of 'clip'"),
    (None, {"adapter": {"r": 0}}, sl.DataError, "`adapter.r` must be a positive number"),
    (None, {"adapter": {"n_blocks": 99}}, sl.DataError, "`adapter.n_blocks` is 99, but the encoder .* has only 12"),
    (None, {"encoder": "vit_nano"}, sl.WeightsError, "No encoder is named 'vit_nano'"),
    (None, {"device": "tpu9"}, sl.DataError, "`device` must be 'auto' or a torch device"),
    (None, {"trainer_kwargs": {"max_epochs": 3}}, sl.DataError, "`trainer_kwargs` must not hold 'max_epochs'"),
    (None, {"adapter": {"n_blocks": 12}, "params": {"cache": "trunk", "epochs": 1}}, sl.DataError, "no frozen trunk"),
]


@pytest.mark.parametrize(("damage", "options", "error", "text"), BAD, ids=[b[3][:30] for b in BAD])
def test_bad_input_is_refused_before_training(ready, finetune, monkeypatch, damage, options, error, text):
    sections = two(ready)
    if damage is not None:
        damage(sections)
    # Refused before the first stage starts, so that no time is lost.
    monkeypatch.setattr("sealst.tl._finetune.finetune.run_stages", lambda *a, **k: pytest.fail("training started"))
    with pytest.raises(error, match=text):
        finetune(sections, **options)


def test_no_sections_and_leaks_are_refused(ready, finetune):
    with pytest.raises(sl.DataError, match="`sections` is empty"):
        finetune([])
    with pytest.raises(TypeError, match=r"`sections\[0\]` must be a SpatialData, found str.*sl.io.read\('C2'\)"):
        finetune(["C2"])
    with pytest.raises(sl.LeakError, match="p1"):
        finetune(two(ready), validation=ready(section="c", patient="p1", seed=3))
    model = finetune(two(ready), validation=ready(section="c", patient="p1", seed=3), allow_shared_patients=True)
    assert "val_pearson" in model.history


def test_panel_of_another_layer_is_refused(ready, finetune):
    sections = two(ready)
    panel = sl.pp.select_genes(sections, 8, layer="lognorm")
    with pytest.raises(sl.PanelError, match="of layer 'lognorm', but `params.layer` is 'context'"):
        finetune(sections, panel=panel)
    assert finetune(sections, panel=sl.pp.select_genes(sections, 5)).panel.genes == (
        sl.pp.select_genes(sections, 5).genes
    )


def test_recipe_moves_from_small_to_the_papers_values():
    small, large = choose(551, 8), choose(700_000, 24)
    assert (small["lr"].value, small["batch_size"].value, small["views"].value, small["adapter_blocks"].value) == (
        0.002, 64, 8, 2,
    )  # fmt: skip
    assert (large["lr"].value, large["batch_size"].value, large["epochs"].value) == (1e-4, 384, 10)
    assert (large["weight_decay"].value, large["views"].value, large["adapter_blocks"].value) == (0.2, 1, 1)
    rates = [choose(n, 12)["lr"].value for n in (500, 5_000, 50_000, 500_000)]
    assert rates == sorted(rates, reverse=True)
    assert all(c.reason for c in small.values())
    assert choose(20, 12)["batch_size"].value <= 10


def test_interrupt_reaches_the_caller_and_signals_are_restored(ready, finetune):
    import signal

    import lightning as L

    class Stop(L.Callback):
        def on_train_batch_end(self, *args):
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        finetune(two(ready), trainer_kwargs={"callbacks": [Stop()]})
    assert signal.getsignal(signal.SIGINT) is before


def test_own_callbacks_and_numpy_numbers_are_welcome(ready, finetune, fast, tmp_path):
    import lightning as L

    seen = []

    class Count(L.Callback):
        def on_train_epoch_end(self, *args):
            seen.append(1)

    params = fast | {"batch_size": np.int64(16), "lr": np.float64(1e-3)}
    model = finetune(two(ready), params=params, trainer_kwargs={"callbacks": [Count()]}, run_dir=tmp_path / "run")
    assert len(seen) == len(model.history) == 3
    assert sl.models.load(tmp_path / "run" / "model", device="cpu").fingerprint == model.fingerprint


def test_no_room_for_the_cache_is_said_before_it_is_written(ready, finetune, monkeypatch, tmp_path):
    from sealst._data.crops import source as store

    monkeypatch.setattr(store, "MAX_RAM_BYTES", 0)
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with (
        pytest.raises(sl.DataError, match=r"crops.npy needs .* GiB free. Name a larger disk with `run_dir=`"),
        (
            sl.settings.override(cache_dir=tmp_path)  # where no other test has left tokens
        ),
    ):
        finetune(two(ready))


def test_validation_without_usable_spots_is_refused_before_training(ready, finetune):
    held = ready(section="v", patient="p9", seed=4)
    held.tables["table"].obs["crop_ok"] = False
    with pytest.raises(sl.DataError, match=r"`validation` has 0 spot\(s\) with a usable crop"):
        finetune([ready(section="a", patient="p1")], validation=held)


@pytest.mark.parametrize("adapter", ["lora", "blocks", "full", "bottleneck", "none", {"dora": True, "r": 2}])
@pytest.mark.parametrize("encoder", ["vit_tiny_patch16_224", "resnet18"])
def test_every_adapter_trains(ready, finetune, fast, encoder, adapter):
    model = finetune(two(ready), encoder=encoder, adapter=adapter, params=fast | {"epochs": 2})
    assert np.isfinite(model.history["train_loss"]).all()
    kind = adapter if isinstance(adapter, str) else "lora"
    assert model.adapter.kind == kind
    base = sl.models.build_encoder(encoder, pretrained=False)
    start = base.state_dict()
    changed = [n for n, v in model.encoder.adapted_state().items() if n not in start or not torch.equal(v, start[n])]
    assert len(changed) == len(model.encoder.adapted)
    assert (len(changed) == 0) == (kind == "none")


def test_pretrained_weights_learn_at_their_own_rate(ready, finetune, fast):
    moved = {}
    for scale in (1e-6, 0.05):
        adapter = {"kind": "blocks", "n_blocks": 1, "lr_scale": scale}
        model = finetune(two(ready), adapter=adapter, params=fast | {"epochs": 2, "weight_decay": 0.0})
        name = "blocks.11.attn.qkv.weight"
        trained = dict(model.encoder.vit.named_parameters())[name].detach()
        moved[scale] = float((trained - model.encoder.originals[name]).abs().max())
    assert moved[0.05] > 100 * moved[1e-6] > 0
