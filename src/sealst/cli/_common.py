"""What all commands share: messages, warnings, config files, JSON on stdout, exit codes."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import click
from click.core import ParameterSource

from sealst._errors import SealstError, SealstWarning
from sealst._given.yaml import from_yaml
from sealst._logging import logger
from sealst._settings import settings
from sealst._system.refusals import refusal
from sealst._validate import listed, near, shown
from sealst.cli._from_signature import Derived
from sealst.cli._types import expected

#: what a pipeline may rely on
EXIT_FAILED, EXIT_USAGE, EXIT_DATA = 1, 2, 3
EXIT_CODES = "Exit codes: 0 done, 1 unexpected failure, 2 wrong usage, 3 input refused."

_QUIET, _VERBOSE, _JSON = "sealst.quiet", "sealst.verbose", "sealst.json"
#: path of the config file and the values it gives
_CONFIG = "sealst.config"
#: loggers of libraries whose warnings say nothing to a user of commands
_CHATTY = ("ome_zarr",)
#: what does on the command line what a call does in Python
_COMMANDS = {
    "pp.pair_crops": "prepare",
    "pp.normalize": "prepare",
    "pp.select_genes": "finetune --include",
    "pp.harmonize_genes": "prepare",
    "pp.tile": "prepare",
    "tl.finetune": "finetune",
    "tl.embed": "embed",
    "tl.predict": "predict",
    "tl.pathways": "pathways",
    "tl.build_index": "index",
    "tl.retrieve": "retrieve",
    "tl.evaluate": "evaluate",
    "tl.fit_slide": "slides fit",
    "tl.predict_slide": "slides predict",
    "tl.embed_slides": "slides embed",
    "io.check": "check",
    "io.recover": "recover",
    "models.list_encoders": "encoders",
}
_CALL = re.compile(rf"`sl\.({'|'.join(map(re.escape, _COMMANDS))})\b")
#: options that a config file cannot set
_NOT_IN_CONFIG = ("config", "help")


@dataclass(frozen=True)
class Answer:
    """What a command gives back: facts for pipelines, text for people."""

    data: Any
    text: str
    exit_code: int = 0


class Refused(click.ClickException):
    """Input that sealst refuses; the message says why."""

    exit_code = EXIT_DATA


class Failed(click.ClickException):
    """A failure that nobody foresaw."""

    exit_code = EXIT_FAILED


class SealstCommand(click.Command):
    """Command whose function returns an `Answer`; adds ``--config``, ``--json``, ``-q`` and ``-v``.

    While the function runs, stdout is stderr: what libraries print cannot get into the JSON.
    """

    _params: list[click.Parameter]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        epilog = str(kwargs.get("epilog") or "")
        kwargs["epilog"] = epilog if "Exit codes" in epilog else f"{epilog} {EXIT_CODES}".strip()
        kwargs["params"] = [*(kwargs.get("params") or []), *_shared_options()]
        super().__init__(*args, **kwargs)

    @property
    def params(self) -> list[click.Parameter]:
        """Arguments and options; what a signature says about them is read when they are first asked for."""
        if any(isinstance(param, Derived) for param in self._params):
            self._params = [param.made() if isinstance(param, Derived) else param for param in self._params]
        return self._params

    @params.setter
    def params(self, params: list[click.Parameter]) -> None:
        self._params = params

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the options; a wrong value of a config file is named by file and key, not by an option nobody typed."""
        try:
            return super().parse_args(ctx, args)
        except click.BadParameter as error:
            param = error.param
            if param is None or ctx.get_parameter_source(str(param.name)) is not ParameterSource.DEFAULT_MAP:
                raise
            path, given = ctx.meta[_CONFIG]
            name, wanted = name_in_config(param), expected(param)
            why = f"expected {wanted}." if wanted else error.message
            raise click.UsageError(f"{str(path)!r} sets {name!r} to {shown(given[name])}: {why}", ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run the function and show its answer; errors become messages and exit codes, ``-v`` shows their origin."""
        with session(ctx.meta):
            try:
                answer = super().invoke(ctx)
            except (click.ClickException, click.exceptions.Exit, click.Abort):
                raise
            except Exception as raised:
                error = refusal(raised) or raised
                if ctx.meta.get(_VERBOSE):
                    click.echo(traceback.format_exc(), err=True, nl=False)
                if isinstance(error, SealstError):
                    # Which commands do what the message asks for in Python.
                    calls = {match.group(1): _COMMANDS[match.group(1)] for match in _CALL.finditer(str(error))}
                    known = ", ".join(f"`sl.{call}` is `sealst {command}`" for call, command in calls.items())
                    raise Refused(f"{error}\nOn the command line {known}." if known else str(error)) from raised
                said = " ".join(str(error).split()) or "no message"
                more = "" if ctx.meta.get(_VERBOSE) else " (-v shows where)"
                raise Failed(f"unexpected {type(error).__name__}: {said}{more}") from raised
        if not isinstance(answer, Answer):
            return answer
        click.echo(as_json(answer.data) if ctx.meta.get(_JSON) else answer.text)
        if answer.exit_code:
            sys.exit(answer.exit_code)
        return None


def as_json(data: Any) -> str:
    """JSON that every parser reads: NaN becomes null, numpy numbers become numbers, what else there is text."""
    return json.dumps(_plain(data), indent=2, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    return value if value is None or isinstance(value, str | int) else str(value)


@contextlib.contextmanager
def session(meta: Mapping[str, Any]) -> Iterator[None]:
    """How much is said while a command runs; everything is as it was afterwards."""
    quiet, verbose = bool(meta.get(_QUIET)), bool(meta.get(_VERBOSE))
    if quiet and verbose:
        raise click.UsageError("Give one of --quiet and --verbose.")
    levels = {log: log.level for log in (logger, *map(logging.getLogger, _CHATTY))}
    shown = settings.progress and not quiet and sys.stderr.isatty()
    with contextlib.ExitStack() as stack:
        stack.enter_context(settings.override(progress=shown))
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        stack.enter_context(warnings.catch_warnings())
        warnings.showwarning = _show_everything if verbose else _show_own
        if quiet or verbose:
            logger.setLevel(logging.WARNING if quiet else logging.DEBUG)
        for name in () if verbose else _CHATTY:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for log, level in levels.items():
                log.setLevel(level)


def _show_own(message: Warning | str, category: type[Warning], *place: Any, **_: Any) -> None:
    # Warnings of libraries are about code, and the user of a command has none.
    if issubclass(category, SealstWarning):
        click.echo(f"Warning: {message}", err=True)


def _show_everything(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    click.echo(warnings.formatwarning(message, category, filename, lineno, line), err=True, nl=False)


# -- options that every command has -----------------------------------------------------------------------------------
def verbosity_options() -> list[click.Option]:
    """``-q`` and ``-v``, of the group and of every command."""
    return [
        click.Option(["-q", "--quiet"], is_flag=True, expose_value=False, callback=_keep(_QUIET),
                     help="No progress bars and no messages, only warnings, errors and the result."),
        click.Option(["-v", "--verbose"], is_flag=True, expose_value=False, callback=_keep(_VERBOSE),
                     help="More messages, warnings of libraries, and the traceback of an error."),
    ]  # fmt: skip


def _shared_options() -> list[click.Option]:
    return [
        click.Option(["--config"], type=click.Path(path_type=Path, exists=True, dir_okay=False), is_eager=True,
                     expose_value=False, callback=_read_config,
                     help="YAML file with values for the options, by their long names; the command line wins."),
        click.Option(["--json", "as_json"], is_flag=True, expose_value=False, callback=_keep(_JSON),
                     help="Print the result as JSON, for pipelines; everything else goes to stderr."),
        *verbosity_options(),
    ]  # fmt: skip


def _keep(name: str) -> Any:
    def callback(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        # A flag before the command counts as much as one behind it.
        ctx.meta[name] = bool(ctx.meta.get(name)) or value

    return callback


def _read_config(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    if value is None:
        return
    known = {name_in_config(p): p for p in ctx.command.params if p.name not in _NOT_IN_CONFIG}
    try:
        given = {str(k).replace("-", "_"): v for k, v in from_yaml(value).items() if v is not None}
    except SealstError as error:
        raise click.UsageError(str(error), ctx) from error
    if unknown := [name for name in given if name not in known]:
        raise click.UsageError(
            f"{str(value)!r} sets {listed(unknown)}, which {ctx.info_name!r} does not have; known: "
            f"{listed(known, 60)}.{near(unknown, known)}",
            ctx,
        )
    ctx.meta[_CONFIG] = (value, given)
    ctx.default_map = dict(ctx.default_map or {})
    for name, one in given.items():
        param = known[name]
        # A single value where several may be given.
        several = param.nargs == -1 or bool(getattr(param, "multiple", False))
        ctx.default_map[str(param.name)] = [one] if several and not isinstance(one, list | tuple) else one


def name_in_config(param: click.Parameter) -> str:
    """Long name of an option, as a config file has it; of an argument its own."""
    longest = next((o for o in param.opts if o.startswith("--")), str(param.name))
    return longest.lstrip("-").replace("-", "_")
