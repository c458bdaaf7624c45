"""Options that several commands have, written once so that they are the same everywhere."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import click

from sealst._files import absolute
from sealst._keys import Keys
from sealst._settings import settings
from sealst.cli._from_signature import options_of
from sealst.cli._sections import Work
from sealst.cli._types import ANY_PATH, EXISTING, KeyValue

F = TypeVar("F", bound=Callable[..., Any])


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
#: an encoder in place of a model
encoder_option = click.option(
    "--encoder", default=None, help="An encoder as it is: key of `sealst encoders`, timm name, or local-dir:FOLDER."
)
#: where spots lie on the picture, and how large it is
scale_options = options_of("pp.pair_crops", "mpp", "pitch_um", "spot_um", "image_key", "coordinate_system")
net_help = "Gene sets: a .gmt, .csv or .tsv file, or hallmark, progeny, collectri, dorothea (downloaded)."


_FORMATS = ["visium", "visium_hd", "xenium", "hest", "h5ad", "st", "wsi", "zarr"]
format_option = options_of(
    "io.read", format={"type": click.Choice(_FORMATS), "help": "Format; by default what is recognised."}
)
#: further arguments of a reader, which a command gets as `options`
reader_option = click.option(
    "--option", "options", multiple=True, type=KeyValue(),
    help="Further argument of the reader, such as bin_um=16; may be repeated.",
)  # fmt: skip


def check_encoder(name: str) -> None:
    """Refuse a name that no encoder has, before torch is imported."""
    from sealst.models._encoders import names

    names.check_encoder(name)


def out_option(help: str) -> Callable[[F], F]:
    """``--out`` and ``--overwrite`` of a command that makes something new."""
    return stacked(click.option("--out", type=ANY_PATH, required=True, help=help), overwrite_option)


@dataclass(frozen=True)
class Stored:
    """The model that a command is told to use."""

    folder: Path
    weights: Path | None
    base: str | None

    def check(self, genes: Iterable[Any] | None = None, *, query: bool = False) -> None:
        """Refuse a folder that is no model, and genes that it does not know, before torch is imported."""
        from sealst.models._folder import check_complete

        check_complete(absolute(self.folder))
        if genes:
            from sealst._core.genes.asked import check_asked, check_named, genes_in

            known = genes_in(self.folder / "panel.tsv")
            check_named(known)
            check_asked(genes, known, query=query)

    def load(self, device: str | None) -> Any:
        """Read it."""
        from sealst.models import load

        return load(self.folder, encoder=self.base, weights=self.weights, device=device)


def model_options(
    *, required: bool = True, help: str = "Folder of a SEAL model, or of the run that made it."
) -> Callable[[F], F]:
    """``--model`` and where its base encoder is, which a command gets as `model`: a `Stored`, or None without."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def call(*args: Any, model: Path | None, weights: Path | None, base: str | None, **options: Any) -> Any:
            if model is None and (weights or base):
                raise click.UsageError("--weights and --base belong to --model.")
            stored = None if model is None else Stored(model_folder(model), weights, base)
            return function(*args, model=stored, **options)

        return stacked(
            click.option("--model", type=EXISTING, required=required, help=help),
            click.option("--weights", type=EXISTING, default=None,
                         help="File or folder with the base encoder's weights; default as models.build_encoder finds "
                              "them."),
            click.option("--base", default=None,
                         help="Where the base encoder is now, if it moved: local-dir:FOLDER or a timm name."),
        )(call)  # type: ignore[return-value]  # fmt: skip

    return decorate


def model_folder(path: Path) -> Path:
    """Folder of a model, given it or the folder of the run that made it."""
    inside = path / "model"
    is_run = not (path / "config.json").is_file() and (inside / "config.json").is_file()
    return inside if is_run else path


def work_options(*, tables: bool = False, metavar: str | None = None) -> Callable[[F], F]:
    """``SECTIONS`` and where results go, which a command gets as `work`; `tables` allows h5ad files."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def call(sections: tuple[Path, ...], out: Path | None, overwrite: bool, table_key: str, **options: Any) -> Any:
            return function(Work(sections, out, overwrite, table_key, tables=tables), **options)

        return stacked(
            click.argument("sections", metavar=metavar, nargs=-1, required=True, type=EXISTING),
            click.option("--out", type=ANY_PATH, default=None,
                         help="Write the tables here (.h5ad, or a folder for several) and leave the input as it is."),
            overwrite_option,
            table_key_option,
        )(call)  # type: ignore[return-value]  # fmt: skip

    return decorate


def stated(**options: Any) -> dict[str, Any]:
    """Options that were given: the others keep the default of the Python call."""
    return {name: value for name, value in options.items() if value is not None and value != ()}
