"""Dropout by rows is dropout, and the same however a batch is cut."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sealst._core.row_dropout import RowDropout, numbered_rows, row_dropouts


def passed(layers, x, cuts, seed=1):
    parts, start = [], 0
    for part in x.split(cuts):
        with numbered_rows(layers, seed, start):
            parts.append(layers[0](part))
        start += len(part)
    return torch.cat(parts)


@pytest.mark.parametrize("cuts", [1, 3, 16, 17, 40])
def test_masks_do_not_depend_on_how_a_batch_is_cut(cuts):
    layers, x = [RowDropout(0.4)], torch.ones(40, 5, 6)
    before = torch.get_rng_state()
    assert torch.equal(passed(layers, x, cuts), passed(layers, x, 40))
    # Nothing else that is drawn in a step is moved.
    assert torch.equal(torch.get_rng_state(), before)


def test_it_is_dropout():
    layers, x = [RowDropout(0.25), RowDropout(0.25)], torch.ones(320, 10, 10, requires_grad=True)
    out = passed(layers, x, 320)
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float(out.mean()) == pytest.approx(1.0, abs=0.02)
    out.sum().backward()
    assert bool((x.grad == out).all())
    rows = (out[:16] > 0).flatten(1)
    assert len(rows.unique(dim=0)) == 16
    with torch.no_grad():
        assert not bool((out == passed(layers, x, 320, seed=2)).all())
        with numbered_rows(layers, 1, 0):
            assert not bool((layers[0](x) == layers[1](x)).all())
        assert not bool(passed([RowDropout(1.0)], x, 320).any())


def test_outside_of_a_training_it_is_the_plain_layer():
    layer, x = RowDropout(0.5), torch.ones(64, 8)
    torch.manual_seed(0)
    own = layer(x)
    torch.manual_seed(0)
    assert torch.equal(own, nn.functional.dropout(x, 0.5))
    layer.eval()
    with numbered_rows([layer], 1, 0):
        assert torch.equal(layer(x), x)


def test_layers_are_found_in_place_and_nothing_else_changes():
    net = nn.Sequential(
        nn.Linear(4, 4), nn.ModuleDict({"default": nn.Dropout(0.2)}), nn.Dropout2d(0.5), nn.Dropout(0.0)
    )
    keys = list(net.state_dict())
    found = row_dropouts(net)
    assert [layer.p for layer in found] == [0.2]
    assert net[1]["default"] is found[0]
    assert type(net[2]) is nn.Dropout2d
    # Nothing to draw, and a compiler can leave it out.
    assert type(net[3]) is nn.Dropout
    assert list(net.state_dict()) == keys
    assert row_dropouts(net) == found
