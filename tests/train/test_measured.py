from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from sealst._core.losses.registry import RECONSTRUCTION
from sealst._core.scores.metrics import gene_pearson
from sealst._data.dataset import Draw, Measured, PairDataset
from sealst._train.module import AlignStage, WarmupStage
from sealst._train.params import TrainParams
from sealst.models._genes import GeneVAE, GeneVAEParams

TABLE = np.array([[True, True, True], [False, True, False]])
SECTION = np.array([0, 0, 1, 1, 0, 1])


def rows(which):
    which = np.asarray(list(which))
    return Draw(which, np.zeros(len(which), dtype=int))


def test_batches_carry_the_rows_of_their_sections() -> None:
    data = PairDataset(None, np.zeros((6, 3), np.float32), measured=Measured(TABLE, SECTION))
    mask = data[rows([5, 0, 2])]["mask"]
    assert mask.dtype == torch.bool
    np.testing.assert_array_equal(mask.numpy(), TABLE[[1, 0, 1]])


def test_there_is_no_mask_where_nothing_is_missing() -> None:
    x = np.zeros((6, 3), np.float32)
    assert "mask" not in PairDataset(None, x)[rows([0])]
    full = PairDataset(None, x, measured=Measured(np.ones((2, 3), bool), SECTION))
    assert "mask" not in full[rows([0])]


@pytest.mark.parametrize("name", sorted(RECONSTRUCTION))
def test_a_loss_with_absent_genes_is_that_of_the_measured_ones(name) -> None:
    rng = torch.Generator().manual_seed(0)
    pred, target = torch.randn(2, 16, 7, generator=rng)
    mask = torch.tensor([True, False, True, True, False, True, True])
    expected = RECONSTRUCTION[name](pred[:, mask], target[:, mask])
    found = RECONSTRUCTION[name](pred, target, mask.expand(16, 7))
    torch.testing.assert_close(found, expected)
    # What stands in for an absent gene does not matter, and nothing flows back to its prediction.
    pred.requires_grad_()
    RECONSTRUCTION[name](pred, torch.where(mask, target, 99), mask.expand(16, 7)).backward()
    assert (pred.grad[:, ~mask] == 0).all()
    assert (pred.grad[:, mask] != 0).any()


def test_pearson_runs_over_the_spots_that_measure_the_gene() -> None:
    pred, true = np.random.default_rng(0).normal(size=(2, 6, 3))
    mask = TABLE[SECTION]
    found = gene_pearson(pred, np.where(mask, true, 0), mask=mask)
    whole = SECTION == 0
    expected = [gene_pearson(pred[whole], true[whole])[0], gene_pearson(pred, true)[1],
                gene_pearson(pred[whole], true[whole])[2]]  # fmt: skip
    np.testing.assert_allclose(found, expected)
    mask = mask.copy()
    mask[:, 2] = [True, False, False, False, False, False]
    assert np.isnan(gene_pearson(pred, true, mask=mask)[2])
    np.testing.assert_array_equal(gene_pearson(pred, true, mask=np.ones_like(mask)), gene_pearson(pred, true))


class Tail(nn.Module):
    """An encoder whose tokens are its embedding."""

    def tail(self, tokens: torch.Tensor, _: int) -> torch.Tensor:
        return tokens


class Heads(nn.Module):
    """What the stages need of a model, with the picture's embedding given."""

    def __init__(self, n_genes: int) -> None:
        super().__init__()
        self.dim, self.n_trunk = 2, 0
        self.encoder = Tail()
        self.gene_encoder = GeneVAE(n_genes, self.dim, GeneVAEParams(hidden=(8,), dropout=0.0))
        self.image_head = nn.Linear(self.dim, n_genes)
        self.image_projection = self.gene_projection = nn.Identity()

    def standardise(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def rates(self):
        return {}


def trained(stage_class, data: PairDataset, steps: int = 80) -> Heads:
    torch.manual_seed(0)
    model = Heads(data.expression.shape[1])
    params = TrainParams(reconstruction="mse", reconstruction_scale=1.0, augmentation="none", weight_contrast=0.01)
    stage = stage_class(model, params, 0.05, steps)
    stage.log = lambda *_, **__: None
    stage.trainer = SimpleNamespace(world_size=1)
    optimiser = torch.optim.Adam(stage.trainable().values(), lr=0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        stage.training_step(data[rows(range(len(data)))], 0).backward()
        optimiser.step()
    return model


def test_spots_do_not_pull_a_gene_that_their_section_lacks_to_the_mean() -> None:
    """Gene 0 follows the picture; two sections show the same pictures and do not measure it."""
    rng = np.random.default_rng(0)
    picture = np.tile(rng.normal(size=(20, 2)), (3, 1)).astype(np.float16)
    section = np.repeat([0, 1, 2], 20)
    x = np.column_stack([picture[:, 0], picture[:, 1], rng.normal(size=60)]).astype(np.float32)
    x[section > 0, 0] = 0
    measured = Measured(np.array([[1, 1, 1], [0, 1, 1], [0, 1, 1]], bool), section)
    slope = {}
    for name, given in (("masked", measured), ("filled", None)):
        data = PairDataset(picture[:, None], x, measured=given)
        slope[name] = trained(AlignStage, data).image_head.weight[0, 0].item()
    assert slope["masked"] == pytest.approx(1, abs=0.05)
    assert slope["filled"] == pytest.approx(1 / 3, abs=0.05)


def test_warm_up_leaves_absent_genes_out_too() -> None:
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    measured = Measured(np.array([[True, True, False]]), np.zeros(20, dtype=int))
    stand_ins = []
    for fill in (0.0, 5.0):
        model = trained(WarmupStage, PairDataset(None, x, measured=measured), steps=1)
        target = torch.from_numpy(x).clone()
        target[:, 2] = fill
        data = PairDataset(None, target.numpy(), measured=measured)
        batch = data[rows(range(20))]
        stage = WarmupStage(model, TrainParams(reconstruction="mse"), 0.1, 1)
        code = model.gene_encoder(torch.from_numpy(x), sample=False).z
        stand_ins.append(stage.reconstruction(model.gene_encoder.decode(code), target, batch).item())
    assert stand_ins[0] == pytest.approx(stand_ins[1])
