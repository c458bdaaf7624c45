"""Entry point: the commands, and what becomes of errors outside them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from sealst._errors import SealstError
from sealst._process.signals import exit_code, raised
from sealst._version import __version__
from sealst.cli._check import check
from sealst.cli._common import EXIT_DATA, EXIT_FAILED, Answer, SealstCommand, verbosity_options
from sealst.cli._embed import embed
from sealst.cli._embed_slides import slides
from sealst.cli._encoders import encoders, export
from sealst.cli._evaluate import evaluate
from sealst.cli._fine import cells, expression_map, fit_local
from sealst.cli._finetune import finetune
from sealst.cli._index import index
from sealst.cli._info import info
from sealst.cli._options import overwrite_option, seed_option
from sealst.cli._predict import pathways, predict
from sealst.cli._prepare import prepare
from sealst.cli._recover import recover
from sealst.cli._retrieve import retrieve
from sealst.cli._synthetic import synthetic
from sealst.cli._types import ANY_PATH


class _InOrder(click.Group):
    """Commands are listed in the order of a project, as they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_InOrder,
    params=list(verbosity_options()),
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 unexpected failure, 2 wrong usage, 3 input refused (the message says why), 130 or "
    "143 stopped (Ctrl-C, SIGTERM).",
)
@click.version_option(__version__, prog_name="sealst")
def cli() -> None:
    """Pathology image encoders that know molecules."""


@click.command(cls=SealstCommand, epilog="Example: `sealst demo --out sealst_demo`.")
@click.option("--out", type=ANY_PATH, default=Path("sealst_demo"), show_default=True,
              help="Folder for results; must not exist.")  # fmt: skip
@seed_option
@overwrite_option
def demo(out: Path, seed: int, overwrite: bool) -> Answer:
    """Train, predict, compare and report on synthetic sections.

    Two synthetic patients are trained on, a third is held out. Needs no network and takes a few minutes on two cores.
    Writes OUT/report.html, the figures, the model, the evaluation table and the held-out section (SpatialData zarr).
    """
    from sealst.cli._demo import run_demo

    folder, summary = run_demo(out, seed=seed, overwrite=overwrite)
    report = folder / "report.html"
    return Answer({"out": str(folder), "report": str(report)}, f"{summary}\n\nReport: {report}")


_COMMANDS = (demo, check, prepare, finetune, evaluate, embed, predict, pathways, fit_local, expression_map, cells)
for _command in (*_COMMANDS, index, retrieve, encoders, export, slides, synthetic, recover, info):
    cli.add_command(_command)


def main() -> None:
    """Run the command line; one that was asked to stop says so by its exit code, whatever became of the request."""
    came: list[int] = []
    code: Any = EXIT_FAILED
    try:
        with raised(came):
            code = _run(came)
    except (KeyboardInterrupt, click.exceptions.Abort):
        code = exit_code(signal.SIGINT)
        came = came or [signal.SIGINT]
    except SystemExit as stop:
        code = stop.code
    if came:
        # Never 0: what was stopped must not look finished.
        click.echo(f"Stopped ({signal.Signals(came[0]).name}).", err=True)
        code = exit_code(came[0])
    sys.exit(code)


def _run(came: Sequence[int]) -> int:
    """Run the command line; errors that sealst raises on purpose become a message and exit code 3."""
    try:
        code = cli(standalone_mode=False)
    except click.ClickException as error:
        if not came:
            error.show()
        return error.exit_code
    except SealstError as error:
        if not came:
            click.echo(f"Error: {error}", err=True)
        return EXIT_DATA
    # What --help and --version end with; commands end by themselves.
    return code if isinstance(code, int) else 0
