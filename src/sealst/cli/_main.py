"""Entry point: options that all commands share, exit codes, messages without stack traces."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from sealst._errors import SealstError
from sealst._logging import logger
from sealst._settings import settings
from sealst._version import __version__
from sealst.cli._check import check
from sealst.cli._evaluate import evaluate
from sealst.cli._slides import slides

#: what a pipeline may rely on
EXIT_FAILED, EXIT_USAGE, EXIT_DATA = 1, 2, 3


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 unexpected failure, 2 wrong usage, 3 input refused (the message says why).",
)
@click.version_option(__version__, prog_name="sealst")
def cli() -> None:
    """Pathology image encoders that know molecules."""


@cli.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("sealst_demo"), show_default=True,
              help="Folder for results; must not exist.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the data and of the training.")
@click.option("--overwrite", is_flag=True, help="Replace the results of an earlier demo in --out.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bars and no messages, only the final table.")
def demo(out: Path, seed: int, overwrite: bool, quiet: bool) -> None:
    """Run the whole path on synthetic sections: train, predict, compare, report.

    Two synthetic patients are trained on, a third is held out. Needs no network and takes a few minutes on two cores.
    Writes OUT/report.html, the figures, the model, the evaluation table and the held-out section (SpatialData zarr).
    """
    from sealst.cli._demo import run_demo

    if quiet:
        logger.setLevel(logging.WARNING)
    with settings.override(progress=settings.progress and not quiet):
        folder, summary = run_demo(out, seed=seed, overwrite=overwrite)
    click.echo(summary)
    click.echo(f"\nReport: {folder / 'report.html'}")


cli.add_command(check)
cli.add_command(evaluate)
cli.add_command(slides)


def main() -> None:
    """Run the command line; errors that sealst raises on purpose become a message and exit code 3."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("Stopped.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except SealstError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(EXIT_DATA)
