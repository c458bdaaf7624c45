"""Pretrain the small encoder that sealst ships ("sealst-tiny"), without labels, on tissue that a program draws.

A vision transformer (6 blocks, width 128, patches of 16 px) learns to tell places of procedural sections apart: two
crops of 112 µm around nearly the same place, turned, mirrored and stained differently, must be nearer to each other
than to those of all other places (NT-Xent; Chen et al., *A Simple Framework for Contrastive Learning of Visual
Representations*, ICML 2020). The class token and the mean of the patch tokens are compared, as `pool="cls+mean"` joins
them. No expression, class or nucleus of the drawing is used, and the seeds of the sections are none that the
demonstration, the tutorials or the tests draw.

    python benchmarks/pretrain_tiny.py --out DIR [--sections 60] [--steps 800] [--batch 192] [--seed 7]

Writes model.safetensors (half precision) and timm's config.json to DIR, which `encoder="local-dir:DIR"` opens, and
prints the loss. The file in the package is that of the defaults; the same seed on the same machine gives the same file.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

# Before torch is imported: threads that wait by spinning, beside other work on the machine, are 20 times as slow.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

import sealst as sl

ARCH = "vit_tiny_patch16_224"
MODEL_ARGS = {"img_size": 112, "embed_dim": 128, "depth": 6, "num_heads": 4}
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
PX, FIRST_SEED, APART_PX, TEMPERATURE = 112, 50_000, 24, 0.2


def pictures(n: int) -> list[torch.Tensor]:
    """Pictures (3, px, px), uint8, at 1 µm per pixel: a patient and a stain each, more varied than the usual."""
    found = []
    for i in range(n):
        sdata = sl.datasets.synthetic(mpp=1.0, stain_variation=1.5, n_genes=200, seed=FIRST_SEED + i)
        image = next(iter(sdata.images.values()))
        level = image["scale0"]["image"] if hasattr(image, "keys") else image
        found.append(torch.from_numpy(np.ascontiguousarray(level.to_numpy())))
    return found


def places(pictures: list[torch.Tensor], n: int, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Section and corner of crops that are not all glass."""
    found: list[tuple[int, int, int]] = []
    while len(found) < n:
        i = int(rng.integers(len(pictures)))
        y, x = (int(v) for v in rng.integers(APART_PX, pictures[i].shape[1] - PX - APART_PX, 2))
        middle = pictures[i][:, y + 28 : y + 84, x + 28 : x + 84].float().mean(0)
        if (middle < 225).float().mean() > 0.3:
            found.append((i, y, x))
    return found


def view(pictures: list[torch.Tensor], where: list[tuple[int, int, int]], rng: np.random.Generator) -> torch.Tensor:
    """Crops (n, 3, px, px) near the places: moved, turned, mirrored, and stained and lit otherwise."""
    crops = []
    for i, y, x in where:
        dy, dx = (int(v) for v in rng.integers(-APART_PX, APART_PX + 1, 2))
        crop = torch.rot90(pictures[i][:, y + dy : y + dy + PX, x + dx : x + dx + PX], int(rng.integers(4)), (1, 2))
        crops.append(crop.flip(2) if rng.random() < 0.5 else crop)
    light = (torch.stack(crops).float() / 255).clamp(min=1 / 255)
    n = len(light)

    def drawn(scale: float, *shape: int) -> torch.Tensor:
        return torch.from_numpy((scale * rng.standard_normal((n, *shape))).astype(np.float32))

    # Strength of the stain as a whole and by channel, in optical density; then the lamp.
    density = -light.log() * torch.exp(drawn(0.2, 1, 1, 1) + drawn(0.1, 3, 1, 1))
    light = torch.exp(-density) * (1 + drawn(0.03, 3, 1, 1))
    light = light + 0.01 * torch.randn(light.shape, generator=torch.Generator().manual_seed(int(rng.integers(2**31))))
    return (light.clamp(0, 1) - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


class Projected(nn.Module):
    """The encoder's class token beside the mean of its patch tokens, and where they are compared."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = timm.create_model(ARCH, num_classes=0, dynamic_img_size=True, **MODEL_ARGS)
        for block in self.vit.blocks:
            # On a processor the backward pass of the fused kernel takes longer than all else together.
            block.attn.fused_attn = False
        width = 2 * MODEL_ARGS["embed_dim"]
        self.head = nn.Sequential(
            nn.Linear(width, 512),
            nn.BatchNorm1d(512),
            nn.ReLU(),
            nn.Linear(512, 128),
            nn.BatchNorm1d(128, affine=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.vit.forward_features(x).float()
        return F.normalize(self.head(torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1)), dim=1)


def nt_xent(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Each row against all rows of both views but itself."""
    z = torch.cat([a, b])
    similar = z @ z.T / TEMPERATURE
    similar.fill_diagonal_(-torch.inf)
    n = len(a)
    return F.cross_entropy(similar, torch.cat([torch.arange(n) + n, torch.arange(n)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sections", type=int, default=60)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    sl.settings.verbosity = "warning"
    torch.manual_seed(args.seed)
    rng, started = np.random.default_rng(args.seed), time.time()
    drawn = pictures(args.sections)
    print(f"{len(drawn)} sections drawn in {time.time() - started:.0f} s", flush=True)
    model = Projected().train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}])
    losses = []
    for step in range(args.steps):
        warm = min(1.0, (step + 1) / (0.05 * args.steps))
        for group in optimiser.param_groups:
            group["lr"] = args.lr * warm * 0.5 * (1 + np.cos(np.pi * step / args.steps))
        where = places(drawn, args.batch, rng)
        both = torch.cat([view(drawn, where, rng), view(drawn, where, rng)])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            a, b = model(both).float().chunk(2)
        loss = nt_xent(a, b)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}: loss {np.mean(losses[-50:]):.3f}, {time.time() - started:.0f} s", flush=True)
            save(model.vit, args.out)


def save(vit: nn.Module, out: Path) -> None:
    """Weights in half precision, and what timm needs to build them."""
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: t.detach().half().contiguous() for name, t in vit.state_dict().items()}, out / "model.safetensors")
    fed = {"input_size": [3, PX, PX], "mean": MEAN, "std": STD, "interpolation": "bicubic", "num_classes": 0}
    config = {"architecture": ARCH, "num_classes": 0, "model_args": MODEL_ARGS, "pretrained_cfg": fed}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
