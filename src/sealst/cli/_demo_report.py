"""Text and order of the demonstration's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from sealst._version import __version__
from sealst.models import SealModel
from sealst.pl._reports.html import Block, Picture, render

_LEAD = """A vision transformer with random weights was finetuned on {n_spots} spots of two synthetic patients,
pairing each spot's H&E crop with its gene expression. Everything below is measured on a third patient it has not
seen. The tissue is drawn by a program, so these numbers show that the path works, not how well it works on real
tissue."""

_COMPARISON = """Pearson correlation of predicted and measured expression over the spots of the section, averaged over
the 50 most variable (hvg50) and most expressed (heg50) genes of the training sections. "colour + ridge" and "mean"
are floors. The most expressed genes of this tissue belong to no program, so there is little to predict in them. R@10
says how often a crop finds its own expression profile among the first 10 of {pool} (chance {chance:.3f})."""

_EXPRESSION = """{0} follows tumour nests and {1} connective tissue: both can be seen in H&E. {2} belongs to a program
that leaves no trace in the picture, so no model can predict it, and this one should not claim to."""

_PATHWAYS = """Gene sets of the synthetic programs, scored on predicted expression. hidden_1 and hidden_2 leave no
trace in the picture: what their maps show is what chance correlations in training tied to visible tissue, not a
finding."""


def demo_report(
    model: SealModel,
    table: pd.DataFrame,
    summary: pd.DataFrame,
    *,
    figures: Mapping[str, Path],
    genes: Sequence[str],
    seconds: float,
) -> str:
    """HTML of the report; `figures` names the PNG files, `genes` are those of the expression figure."""
    pool = int(table.loc[table["metric"] == "R@10", "pool"].iloc[0])

    def picture(name: str, caption: str) -> list[Picture]:
        return [Picture(figures[name], caption)]

    blocks = [
        Block(
            "What the model sees",
            ["Crops of 112 µm around spots of the held-out section."],
            figures=picture("crops", "Crops of the held-out section"),
        ),
        Block(
            "Frozen against adapted",
            [_COMPARISON.format(pool=pool, chance=10 / pool)],
            table=summary,
            figures=picture("evaluation", "Every method on the held-out patient, with 95 % intervals over genes"),
        ),
        Block(
            "Predicted expression",
            [_EXPRESSION.format(*genes)],
            figures=picture("expression", "Measured and predicted expression, log1p of counts per 10,000"),
        ),
        Block("Pathway activity from the image", [_PATHWAYS], figures=picture("pathways", "Pathway activity (ulm)")),
        Block(
            "Search by gene",
            [f"Spots whose crop lies closest to high {genes[0]} in the shared embedding."],
            figures=picture("retrieval", f"Best and worst crops for {genes[0]}"),
        ),
        Block("Training", figures=picture("training", "Loss over epochs")),
    ]
    lead = [_LEAD.format(n_spots=model.provenance["n_spots"])]
    footer = f"sealst {__version__}, seed {model.provenance['seed']}, {seconds:.0f} s"
    return render("sealst demo: an image encoder learns gene expression", lead, blocks, footer)
