"""The commands ``sealst slides fit`` and ``sealst slides predict``."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from sealst._errors import MissingKeyError
from sealst._files import is_store
from sealst._keys import Keys
from sealst.cli import _options as opt
from sealst.cli._common import Answer, SealstCommand
from sealst.cli._from_signature import options_of
from sealst.cli._sections import H5AD, Work, check_ending, check_new, saved_text, write_frame
from sealst.cli._types import ANY_PATH, EXISTING


@click.command(
    "fit",
    cls=SealstCommand,
    epilog="Example: `sealst slides fit cohort --target grade --labels labels.csv --out grade_model`.",
)
@click.argument("bags", type=EXISTING)
@options_of("tl.fit_slide", "target")
@opt.out_option("New folder for the model and its evaluation.")
@options_of("io.read_bags", "labels", "key", "patient_key", "slide_key")
@options_of(
    "tl.fit_slide", "task", "event", "aggregator", "folds", "test", "compare",
    task={"type": click.Choice(["classification", "regression", "survival"])},
    test={"help": "Slides that are kept out of the folds, as BAGS."},
    compare={"type": click.STRING, "multiple": True,
             "help": "Embedding to stand beside; default X_frozen where there is one."},
)  # fmt: skip
@click.option("--no-compare", is_flag=True, help="Let no other embedding stand beside.")
@options_of("tl.fit_slide", "params", n_bootstrap={"type": click.IntRange(min=0)})
@click.option("--report", type=ANY_PATH, default=None,
              help="Write a page on the cross-validation here (.html; pl.slide_report).")  # fmt: skip
@opt.seed_option
@opt.device_option
def slides_fit(
    bags: Path,
    *,
    target: tuple[str, ...],
    out: Path,
    overwrite: bool,
    folds: str,
    test: Path | None,
    compare: tuple[str, ...],
    no_compare: bool,
    report: Path | None,
    **options: Any,
) -> Answer:
    """Fit a model of slide labels on tile embeddings (tl.fit_slide).

    BAGS is a folder of `sealst slides embed` or of TRIDENT or CLAM h5 files, see io.read_bags. Patients are never on
    both sides of a fold; the frozen encoder and a floor stand beside the result.
    """
    if compare and no_compare:
        raise click.UsageError("Give one of --compare and --no-compare.")
    if report is not None and report.suffix.lower() != ".html":
        raise click.UsageError(f"--report must end in .html, found {report.name!r}.")
    check_new(out, overwrite)
    if report is not None:
        check_new(report, overwrite, option="--report")
    io, tl = (importlib.import_module(f"sealst.{name}") for name in ("io", "tl"))
    reading = opt.stated(**{name: options.pop(name) for name in ("labels", "key", "patient_key", "slide_key")})
    model = tl.fit_slide(
        io.read_bags(bags, **reading),
        target[0] if len(target) == 1 else list(target),
        folds=int(folds) if folds.isdigit() else folds,
        test=None if test is None else io.read_bags(test, **reading),
        compare=list(compare) if compare or no_compare else None,
        **opt.stated(**options),
    )
    model.save(out, overwrite=overwrite)
    found, tested = model.evaluation, model.test_evaluation
    facts: dict[str, Any] = {"model": str(out), "facts": dict(found.facts)}
    facts["evaluation"] = found.table.to_dict(orient="records")
    parts = [found.summary().round(4).to_string()]
    if tested is not None:
        facts["test_evaluation"] = tested.table.to_dict(orient="records")
        parts.append(f"Slides of --test:\n{tested.summary().round(4).to_string()}")
    parts.append(f"Model: {out}")
    if report is not None:
        importlib.import_module("sealst.pl").slide_report(found, report)
        facts["report"] = str(report)
        parts[-1] += f"\nReport: {report}"
    return Answer(facts, "\n\n".join(parts))


@click.command(
    "predict",
    cls=SealstCommand,
    epilog="Examples: `sealst slides predict new_cohort --model grade_model --predictions grades.csv`; `sealst slides "
    "predict s1.h5ad --model grade_model`.",
)
@click.option("--model", type=EXISTING, required=True, help="Folder of `sealst slides fit`.")
@click.option("--predictions", type=ANY_PATH, default=None, help="Write predictions here: .csv, .tsv or .json.")
@options_of("tl.predict_slide", "target", key_added={"help": "Column of .obs for the attention."})
@opt.region_option
@opt.work_options(tables=True, metavar="SLIDES")
@opt.device_option
def slides_predict(work: Work, *, model: Path, predictions: Path | None, device: str | None, **options: Any) -> Answer:
    """Predict labels of slides, and where the model looked (tl.predict_slide).

    SLIDES is one folder of bags, whose predictions are a table; or tables of tiles (.h5ad) or zarr stores, which get
    the attention of every tile, saved where they came from or in --out.
    """
    if predictions is not None:
        check_ending(predictions, "--predictions")
        check_new(predictions, work.overwrite, option="--predictions")
    tables = all(path.suffix == H5AD or is_store(path) for path in work.paths)
    if not tables and (len(work.paths) > 1 or work.out is not None):
        raise click.UsageError("Of a folder of bags give one, and --predictions in place of --out.")
    if not tables:
        # Refuse options that say nothing about a folder of bags, since nothing is written into it.
        context = click.get_current_context()
        names = ["target", "key_added", "region", "table_key", *(["overwrite"] if predictions is None else [])]
        given = [n for n in names if context.get_parameter_source(n) is not ParameterSource.DEFAULT]
        if given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise click.UsageError(
                f"{flags}: for tables of tiles and stores. Of a folder of bags all targets are predicted."
            )
    work.check()
    tl, models = (importlib.import_module(f"sealst.{name}") for name in ("tl", "models"))
    slide_model = models.load_slide(model, device=device)
    if not tables:
        found = tl.predict_slide(_bags_of(work.paths[0], slide_model.spec.key), slide_model)
        found = found.rename_axis("slide").reset_index()
        return _answer(found, predictions, [], found.to_string(index=False))
    import pandas as pd

    frames = []

    def run(data: Any) -> dict[str, Any]:
        tl.predict_slide(data, slide_model, table_key=work.table_key, **opt.stated(**options))
        table = work.table(data)
        entry = table.uns[Keys.UNS]["predict_slide"][options["key_added"]]
        frames.append(pd.DataFrame(entry["predictions"]))
        return {"n_obs": int(table.n_obs)}

    records = work.run(run)
    return _answer(pd.concat(frames, ignore_index=True), predictions, records, saved_text(records, "n_obs"))


def _bags_of(folder: Path, key: str) -> Any:
    """Bags of a folder; where no embedding is called `key`, `predict_slide` looks for the one by the same model."""
    io = importlib.import_module("sealst.io")
    try:
        return io.read_bags(folder, key=key)
    except MissingKeyError:
        # Of a job with several embeddings any can be opened, which then know of the others.
        folders = [*folder.glob("features_*"), *folder.glob("*/features_*")]
        several = sorted(path.name.removeprefix("features_") for path in folders if path.is_dir())
        return io.read_bags(folder, key=several[0] if several else None)


def _answer(found: Any, predictions: Path | None, records: list[dict[str, Any]], text: str) -> Answer:
    if predictions is not None:
        write_frame(found, predictions)
    return Answer({"predictions": found.to_dict(orient="records"), "sections": records}, text)
