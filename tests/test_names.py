"""Names that are mark-up for somebody: figures and model cards show them as they are."""

from __future__ import annotations

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.text import Text

import sealst as sl
from sealst.models import CropSpec, GeneVAEParams, HeadParams, LoraParams, SealModel, build_encoder
from sealst.models._seal.card import model_card, timm_card
from sealst.pl import _base

NAMES = ("$^$", "$a$b$c", r"$\frac{$", r"\$", "a|b", "<b>x</b>", "`x`", "A_1^2")


@pytest.mark.parametrize("name", NAMES)
def test_figures(name: str, tmp_path) -> None:
    figure, ax = plt.subplots(figsize=(2, 2))
    ax.set_title(name)
    ax.set_yticks([0, 1], labels=[name, "b"])
    ax.plot([0, 1], label=name)
    ax.legend()
    assert _base.finish(figure, None, tmp_path / "figure.png", show=None) is figure
    shown = [text.get_text() for text in figure.findobj(Text)]
    # Title, tick and legend; matplotlib keeps a second label for a tick.
    assert shown.count(name) >= 3
    assert not any(text.get_parse_math() for text in figure.findobj(Text))
    plt.close(figure)


def test_formulas_of_other_axes_stay(tmp_path) -> None:
    _, (own, others) = plt.subplots(1, 2)
    own.set_title("$^$")
    others.set_title("$R^2$")
    _base.finish(own.figure, own, None, show=None)
    assert (own.title.get_parse_math(), others.title.get_parse_math()) == (False, True)
    plt.close(own.figure)


@pytest.fixture(scope="module")
def model() -> SealModel:
    panel = sl.GenePanel(("A", "B"), np.ones(2), np.ones(2))
    encoder = build_encoder("vit_tiny_patch16_224", pretrained=False)
    options = {"crop": CropSpec(112.0, 32), "adapter": LoraParams(n_blocks=1), "head": HeadParams(4)}
    return SealModel(encoder, panel, gene_encoder=GeneVAEParams(hidden=(4,)), **options)


@pytest.mark.parametrize("name", [*NAMES, "a\nb\n---\nevil: true", "yes", "[x](javascript:alert(1))", 'x"); evil("'])
def test_cards(model: SealModel, name: str) -> None:
    spec = model.encoder.spec
    model.provenance = {"sections": [name], "patients": [name], "note": name, "source": name}
    model.encoder.spec = replace(spec, licence=name, hf_id=name, citation=name, key=name)
    table = pd.DataFrame({"method": [name], "metric": ["pearson"], "genes": ["all"], "value": [0.5], "section": [name]})
    try:
        for card in (model_card(model), timm_card(model, difference=0.0, evaluation=table)):
            front, body = card.removeprefix("---\n").split("\n---\n", 1)
            facts = yaml.safe_load(front)
            assert facts["base_model"] == name
            assert facts["license_name"] == name.lower().replace(" ", "-")
            assert "evil" not in facts
            assert "<b>" not in body.replace(r"\<", "")
            rows = [line for line in body.splitlines() if line.startswith("| Training sections")]
            assert len(rows) == 1
            # Two cells, whatever the name holds.
            assert rows[0].replace(r"\|", "").count("|") == 3
    finally:
        model.encoder.spec = spec
