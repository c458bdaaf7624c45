"""Write the option tables of docs/command_line.md from the commands themselves: `python docs/option_tables.py`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from sealst.cli._common import SealstCommand
from sealst.cli._main import cli

PAGE = Path(__file__).parent / "command_line.md"
#: options that every command has are described once
SHARED = {"config", "json", "quiet", "verbose", "help"}


def commands(group: click.Group = cli, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Names of commands, those of groups as ``group command``, and the commands."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def table(command: click.Command) -> str:
    """Markdown table of a command's own options."""
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for param in command.params:
        if isinstance(param, click.Option) and not _shared(command, param):
            names = ", ".join(f"`{name}`" for name in [*param.opts, *param.secondary_opts])
            rows.append(f"| {names} | {_default(param)} | {_text(param)} |")
    return "\n".join(rows) if len(rows) > 2 else "No options of its own."


def filled(page: str) -> str:
    """The page with the tables between its markers replaced."""
    for name, command in commands():
        mark = f"<!-- options: {name} -->"
        block = f"{mark}\n\n{table(command)}\n\n<!-- end -->"
        page = re.sub(rf"{re.escape(mark)}.*?<!-- end -->", lambda _, block=block: block, page, flags=re.S)
    return page


def _shared(command: click.Command, param: click.Option) -> bool:
    return isinstance(command, SealstCommand) and any(name.lstrip("-") in SHARED for name in param.opts)


def _default(param: click.Option) -> str:
    value = param.to_info_dict()["default"]
    if param.required:
        return "required"
    if param.secondary_opts and value in (True, False):
        return f"`{(param.opts if value else param.secondary_opts)[0]}`"
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value))
    return "" if value is None or value is False or value == "" or "UNSET" in str(value) else f"`{value}`"


def _text(param: click.Option) -> str:
    choices = f" ({', '.join(map(str, param.type.choices))})" if isinstance(param.type, click.Choice) else ""
    return re.sub(r"<\w+>", r"`\g<0>`", (param.help or "") + choices).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
