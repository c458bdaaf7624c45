"""Options that several commands have, written once so that they are the same everywhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import click

from sealst._keys import Keys
from sealst._settings import settings

F = TypeVar("F", bound=Callable[..., Any])

EXISTING = click.Path(path_type=Path, exists=True)
EXISTING_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
ANY_PATH = click.Path(path_type=Path)


def stacked(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Several decorators as one, in the order of the help page."""
    return lambda function: reduce(lambda f, decorate: decorate(f), reversed(decorators), function)


#: sections that a command works on
sections_argument = click.argument("sections", nargs=-1, required=True, type=EXISTING)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace what an earlier call wrote to --out.")
device_option = click.option("--device", default=None, help="auto, cpu, cuda, cuda:1, mps.")
seed_option = click.option(
    "--seed", type=int, default=None,
    callback=lambda _context, _option, given: settings.seed if given is None else given,
    help="Seed of everything random; default settings' seed (0).",
)  # fmt: skip
table_key_option = click.option("--table-key", default=Keys.TABLE, show_default=True, help="Table to read and write.")
region_option = click.option("--region", multiple=True, help="Region of the table; may be repeated. Default: all.")
net_help = "Gene sets: a .gmt, .csv or .tsv file, or hallmark, progeny, collectri, dorothea (downloaded)."
method_option = click.option("--method", default="ulm", show_default=True, help="Method of decoupler.")

#: where tables go; without it they go back to where they came from
table_out_options = stacked(
    click.option("--out", type=ANY_PATH, default=None,
                 help="Write the tables here (.h5ad, or a folder for several) and leave SECTIONS as they are."),
    overwrite_option,
)  # fmt: skip

#: where the base encoder of a model is
base_options = stacked(
    click.option("--weights", type=EXISTING, default=None,
                 help="File or folder with the base encoder's weights; default as models.build_encoder finds them."),
    click.option("--base", default=None,
                 help="Where the base encoder is now, if it moved: local-dir:FOLDER or a timm name."),
)  # fmt: skip

model_options = stacked(
    click.option("--model", type=EXISTING, required=True, help="Folder of a SEAL model, or of the run that made it."),
    base_options,
)


def model_folder(path: Path) -> Path:
    """Folder of a model, given it or the folder of the run that made it."""
    inside = path / "model"
    is_run = not (path / "config.json").is_file() and (inside / "config.json").is_file()
    return inside if is_run else path


def load_model(path: Path, *, weights: Path | None, base: str | None, device: str | None) -> Any:
    """Model of a model folder, or of the folder of a run."""
    from sealst.models import load

    return load(model_folder(path), encoder=base, weights=weights, device=device)


def stated(**options: Any) -> dict[str, Any]:
    """Options that were given: the others keep the default of the Python call."""
    return {name: value for name, value in options.items() if value is not None and value != ()}
