"""Write docs/command_options.md from the commands themselves: `python docs/option_tables.py`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from sealst.cli._common import SealstCommand
from sealst.cli._main import cli

PAGE = Path(__file__).parent / "command_options.md"
#: options that every command has are described once, in docs/command_line.md
SHARED = {"config", "json", "quiet", "verbose", "help"}
_HEAD = """# Options of the commands

Written from what `sealst COMMAND --help` says. What all commands share, and which one does what, is on
{doc}`command_line`."""


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


def page() -> str:
    """The whole page: of every command what it does, how it is called and its options."""
    parts = [_HEAD]
    for name, command in commands():
        first = inspect.cleandoc(command.help or "").split("\n\n")[0]
        takes = " ".join(param.make_metavar(click.Context(command)) for param in command.params if _is_argument(param))
        parts += [f"## {name}", _marked(" ".join(first.split())), f"`sealst {name} {takes}`".replace(" `", "`")]
        parts.append(table(command))
    return "\n\n".join(parts) + "\n"


def _is_argument(param: click.Parameter) -> bool:
    return isinstance(param, click.Argument)


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
    return _marked((param.help or "") + choices).replace("|", "\\|")


def _marked(text: str) -> str:
    """Names in angle brackets as code, which Markdown would take for markup."""
    return re.sub(r"<\w+>", r"`\g<0>`", text)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
