"""The command ``sealst recover``."""

from __future__ import annotations

from pathlib import Path

import click

from sealst.cli._common import Answer, SealstCommand
from sealst.cli._from_signature import options_of
from sealst.cli._types import ANY_PATH


@click.command(cls=SealstCommand, epilog="Example: `sealst recover sections/a.zarr`.")
@click.argument("path", type=ANY_PATH)
@options_of("io.recover", "discard")
def recover(path: Path, *, discard: bool) -> Answer:
    """Mend what a killed process left of writing PATH.

    PATH is a store, a model or any other folder of results, by the name that it has, or should have. A save into a
    store that was cut off is finished where all that it names is what it was; else the message says why it is not. A
    folder that was being replaced gets its name back. Hidden folders of killed processes beside it are removed.
    """
    from sealst.io import recover as mend

    mend(path, discard=discard)
    return Answer({"path": str(path)}, f"{path} is whole.")
