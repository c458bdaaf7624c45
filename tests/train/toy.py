"""A model and data that train in a second; also run as a script in processes of their own, which tests start."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import sealst as sl
from sealst._core.seeds import seeded
from sealst._data.dataset import Measured, PairDataset
from sealst._train.engine import Run, run_stages
from sealst._train.params import TrainParams
from sealst.models import CropSpec, GeneVAEParams, HeadParams, LoraParams, SealModel
from sealst.models._encoders.build import build_from_spec
from sealst.models._encoders.records import REGISTRY

N_GENES, PX = 12, 32
PLAIN = {
    "epochs": 3, "batch_size": 16, "lr": 1e-3, "weight_decay": 0.05, "warmup_epochs": 0, "views": 1,
    "augmentation": "none",
}  # fmt: skip


def make_model(dropout: float = 0.0, *, init_values: float = 1e-5, **options) -> SealModel:
    """With larger `init_values` (of layer scale) random blocks tell crops apart before training."""
    spec = REGISTRY["uni"]
    args = {"embed_dim": 48, "depth": 2, "num_heads": 2, "img_size": PX, "init_values": init_values}
    args = dict(spec.model_args) | args
    spec = replace(spec, model_args=args, width=48, n_blocks=2, input_px=PX, dim=48)
    panel = sl.GenePanel(tuple(f"G{i}" for i in range(N_GENES)), np.zeros(N_GENES), np.ones(N_GENES))
    with seeded(3):
        return SealModel(
            build_from_spec(spec, pretrained=False), panel, crop=CropSpec(16.0, PX),
            adapter=LoraParams(n_blocks=1, dropout=dropout),
            **{"gene_encoder": GeneVAEParams(hidden=(16,), dropout=dropout), "head": HeadParams(16)} | options,
        )  # fmt: skip


def make_data(n: int = 64, **options) -> PairDataset:
    """Crops whose colour tells the expression."""
    rng = np.random.default_rng(0)
    colour = rng.integers(30, 220, (n, 1, 1, 3))
    crops = np.clip(colour + rng.normal(0, 12, (n, PX, PX, 3)), 0, 255).astype(np.uint8)
    loading = rng.normal(size=(3, N_GENES))
    x = ((colour[:, 0, 0] / 128 - 1) @ loading + rng.normal(0, 0.1, (n, N_GENES))).astype(np.float32)
    return PairDataset(crops, x, **options)


def make_params(**changes) -> TrainParams:
    return TrainParams(**(PLAIN | changes))


def train(params: TrainParams, run: Run, *, n: int = 64, dropout: float = 0.0, init_values: float = 1e-5, held_out=None,
          **options):  # fmt: skip
    model = make_model(dropout, init_values=init_values)
    with seeded(run.seed):
        return model, run_stages(model, params, train=make_data(n), held_out=held_out, run=run, **options)


def fit(params: TrainParams, run: Run, **options) -> tuple[SealModel, list]:
    model, history = train(params, run, **options)
    return model, history["train_loss"].tolist()


def make_held_out(n: int) -> PairDataset:
    """Spots of two sections, one of which does not measure the first genes."""
    table = np.ones((2, N_GENES), bool)
    table[1, :4] = False
    return make_data(n, measured=Measured(table, np.arange(n) % 2))


def main() -> None:
    """Train as the JSON on the command line says; print losses and fingerprint."""
    options = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    folder = options.get("folder")
    state = None
    if folder:
        from sealst._train.callbacks import read_checkpoint

        Path(folder).mkdir(exist_ok=True)
        state = read_checkpoint(Path(folder))
        print("resumed at", state["segment"] if state else 0, flush=True)
    if options.get("slow"):
        _slow_steps(options["slow"])
    run = Run(
        seed=1, folder=Path(folder) if folder else None, state=state, max_steps=options.get("max_steps", 500),
        seconds=0.0, trainer_kwargs=options.get("trainer_kwargs", {}), show=False,
    )  # fmt: skip
    held_out = make_held_out(options["held_out"]) if options.get("held_out") else None
    chosen = {name: options[name] for name in ("dropout", "init_values") if name in options}
    model, history = train(make_params(**options["params"]), run, held_out=held_out, **chosen)
    if int(os.environ.get("RANK", 0)) == 0:
        found = {"losses": history["train_loss"].tolist(), "fingerprint": model.fingerprint}
        found |= {name: history[name].tolist() for name in history if name.startswith("val_")}
        print(json.dumps(found), flush=True)
        if options.get("out"):
            torch.save(model.trained_state(), options["out"])


def _slow_steps(seconds: float) -> None:
    """Leave a killer time to hit."""
    from sealst._train.module import AlignStage

    plain = AlignStage.training_step

    def slow(self, *args):
        time.sleep(seconds)
        return plain(self, *args)

    AlignStage.training_step = slow


if __name__ == "__main__":
    main()
