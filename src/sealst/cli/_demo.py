"""The demonstration: synthetic sections through the whole of sealst."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import sealst as sl
from sealst._core.report import Block, Picture, render
from sealst._errors import DataError
from sealst._files import new_folder, put_back, write_text
from sealst._logging import logger, quiet_writing
from sealst._version import __version__

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

    from sealst.models import SealModel

_LEAD = """The small encoder that is shipped with sealst, pretrained without labels on other drawn tissue, was
finetuned on {n_spots} spots of two synthetic patients, pairing each spot's H&E crop with its gene expression.
Everything below is measured on a third patient it has not seen. The tissue is drawn by a program, so these numbers
show that the path works, not how well it works on real tissue."""
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
    pictures = {
        "crops": "Crops of the held-out section",
        "evaluation": "Every method on the held-out patient, with 95 % intervals over genes",
        "expression": "Measured and predicted expression, log1p of counts per 10,000",
        "pathways": "Pathway activity (ulm)",
        "retrieval": f"Best and worst crops for {genes[0]}",
        "training": "Loss over epochs",
    }
    shown = {name: [Picture(figures[name], caption)] for name, caption in pictures.items()}
    blocks = [
        Block(
            "What the model sees",
            ["Crops of 112 µm around spots of the held-out section."],
            figures=shown["crops"],
        ),
        Block(
            "Frozen against adapted",
            [_COMPARISON.format(pool=pool, chance=10 / pool)],
            table=summary,
            figures=shown["evaluation"],
        ),
        Block(
            "Predicted expression",
            [_EXPRESSION.format(*genes)],
            figures=shown["expression"],
        ),
        Block("Pathway activity from the image", [_PATHWAYS], figures=shown["pathways"]),
        Block(
            "Search by gene",
            [f"Spots whose crop lies closest to high {genes[0]} in the shared embedding."],
            figures=shown["retrieval"],
        ),
        Block("Training", figures=shown["training"]),
    ]
    lead = [_LEAD.format(n_spots=model.provenance["n_spots"])]
    footer = f"sealst {__version__}, seed {model.provenance['seed']}, {seconds:.0f} s"
    return render("sealst demo: an image encoder learns gene expression", lead, blocks, footer)


#: shown in the figures: tumour, connective tissue, and a gene whose program leaves no trace in the picture
GENES = ("ERBB2", "COL1A1", "HID1_01")
_MARKER = ".sealst-demo"
_ENCODER = "sealst-tiny"


def run_demo(out: Path, *, seed: int, overwrite: bool) -> tuple[Path, str]:
    """Run the demonstration and return its folder and the comparison as text."""
    out = out.resolve()
    put_back(out)
    if out.exists() and not (out / _MARKER).is_file():
        raise DataError(f"{str(out)!r} exists and is not the result of a demo; name another folder with --out.")
    if out.exists() and not overwrite:
        raise DataError(f"{str(out)!r} holds an earlier demo; replace it with --overwrite, or name another --out.")
    with new_folder(out, overwrite=overwrite, marker=_MARKER) as work:
        # Nobody trains on these sections again: their tokens must not stay in the user's cache.
        with tempfile.TemporaryDirectory(prefix="sealst-") as cache, sl.settings.override(cache_dir=Path(cache)):
            model, test, table, seconds = _run(work, seed)
        # One line per method: gene Pearson, and recall where the method retrieves.
        pearson = table[table["metric"] == "pearson"]
        pearson = pearson.pivot_table(index="method", columns="genes", values="value", sort=False)
        recall = table[table["metric"] == "R@10"].set_index("method")["value"].rename("R@10")
        # What embeddings find themselves, without a prediction, has a line of its own.
        recall = recall.rename(index={"adapted": "adapted, by embedding"}).drop("frozen")
        joined = pearson.reindex([*pearson.index, *recall.index.difference(pearson.index)]).join(recall)
        joined = joined.rename_axis("method").reset_index()
        summary = joined.map(lambda v: ("" if v != v else f"{v:.3f}") if isinstance(v, float) else v)
        folder = work / "figures"
        folder.mkdir()
        names = ("crops", "training", "evaluation", "expression", "pathways", "retrieval")
        figures = {name: folder / f"{name}.png" for name in names}
        sl.pl.crops(test, n_crops=16, save=figures["crops"], show=False)
        sl.pl.training(model, save=figures["training"], show=False)
        sl.pl.evaluation(table, metrics=["pearson", "R@10"], save=figures["evaluation"], show=False)
        sl.pl.expression(test, list(GENES), save=figures["expression"], show=False)
        sl.pl.pathways(test, save=figures["pathways"], show=False)
        sl.pl.retrieval(test, save=figures["retrieval"], show=False)
        html = demo_report(model, table, summary, figures=figures, genes=GENES, seconds=seconds)
        write_text(work / "report.html", html)
        (work / _MARKER).touch()
    return out, summary.to_string(index=False)


def _run(work: Path, seed: int) -> tuple[SealModel, SpatialData, pd.DataFrame, float]:
    """Model, held-out section, table of the evaluation, and how many seconds it took."""
    started = time.perf_counter()
    logger.info("Drawing three synthetic sections, one patient each")
    sections = sl.datasets.synthetic(3, seed=seed)
    for sdata in sections:
        sl.pp.pair_crops(sdata, crop_um=112, crop_px=112)
        sl.pp.normalize(sdata)
    *train, test = sections
    logger.info("Finetuning the small encoder that is shipped with sealst; it was pretrained on drawn tissue alone")
    model = sl.tl.finetune(train, encoder=_ENCODER, n_genes=400, seed=seed, run_dir=work / "run")
    logger.info("Predicting, comparing and searching on the held-out patient")
    sl.tl.predict(test, model, net=sl.datasets.synthetic_net())
    sl.tl.retrieve(test, model, GENES[0])
    found = sl.tl.evaluate(train, model, test=test, seed=seed)
    found.table.to_csv(work / "evaluation.csv", index=False)
    with quiet_writing():
        test.write(work / "held_out.zarr")
    single = found.table[found.table["section"] != ""]
    return model, test, single, time.perf_counter() - started
