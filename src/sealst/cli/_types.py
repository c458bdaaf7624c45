"""Values of options that are more than a word: mappings, lists, limits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from sealst._errors import DataError
from sealst._files import read_text
from sealst._given.yaml import from_yaml, parse_yaml
from sealst._validate import listed, shown

EXISTING = click.Path(path_type=Path, exists=True)
EXISTING_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
ANY_PATH = click.Path(path_type=Path)


class YamlMapping(click.ParamType):
    """Names and values: inline YAML such as ``{epochs: 5}``, or a YAML file; with `word` also a single word."""

    name = "yaml"

    def __init__(self, *, word: bool = False) -> None:
        self.word = word

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Mapping (or word) from text; what a config file gives is taken as it is."""
        found = value
        if isinstance(value, str):
            try:
                # A pathlib.Path raises where the text is longer than any name.
                found = from_yaml(value) if os.path.isfile(value) else parse_yaml(value)
            except DataError as error:
                self.fail(" ".join(str(error).split()), param, ctx)
        if isinstance(found, Mapping) or (self.word and isinstance(found, str)):
            return found
        what = "a name or names and values" if self.word else "names and values"
        return self.fail(f"expected {what} such as '{{epochs: 5}}', or a YAML file; found {shown(value)}.", param, ctx)


class AutoNumber(click.ParamType):
    """``auto``, or a whole number from 1 on."""

    name = "auto|number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Text ``"auto"`` as it is, else a number."""
        if value == "auto":
            return value
        try:
            return click.IntRange(min=1).convert(value, param, ctx)
        except click.BadParameter:
            return self.fail(f"expected 'auto' or a whole number from 1 on, found {shown(value)}.", param, ctx)


class KeyValue(click.ParamType):
    """``NAME=VALUE``, the value read as YAML; gives a mapping."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Mapping with one name; a mapping of a config file is taken as it is."""
        if isinstance(value, Mapping):
            return dict(value)
        name, sign, text = str(value).partition("=")
        if not (name and sign):
            self.fail(f"expected NAME=VALUE, found {shown(value)}.", param, ctx)
        try:
            return {name.strip().replace("-", "_"): parse_yaml(text)}
        except DataError as error:
            return self.fail(" ".join(str(error).split()), param, ctx)


class Limits(click.ParamType):
    """``METRIC=LOW:HIGH``, where either side may be empty; gives a mapping to pairs."""

    name = "metric=low:high"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Mapping of a metric to its limits; of a config file: ``metric: [low, high]``."""
        if isinstance(value, Mapping):
            return {name: self._pair(pair, param, ctx) for name, pair in value.items()}
        name, sign, text = str(value).partition("=")
        sides = text.split(":")
        if not (name and sign) or len(sides) != 2:
            self.fail(f"expected METRIC=LOW:HIGH, such as fold_fraction=:0.1, found {shown(value)}.", param, ctx)
        return {name: self._pair([side or None for side in sides], param, ctx)}

    def _pair(self, pair: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float | None, ...]:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            self.fail(f"expected a lowest and a highest value, null for none, found {shown(pair)}.", param, ctx)
        try:
            return tuple(None if side is None else float(side) for side in pair)
        except (TypeError, ValueError):
            return self.fail(f"limits must be numbers, found {shown(pair)}.", param, ctx)


class Genes(click.ParamType):
    """Names separated by commas, or a text file with one per line."""

    name = "genes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """List of names without doubles, in the order given."""
        if isinstance(value, str):
            path = Path(value)
            try:
                value = read_text(path).splitlines() if os.path.isfile(value) else value.split(",")
            except (OSError, DataError) as error:
                self.fail(f"{str(path)!r} could not be read as a list of genes: {error}.", param, ctx)
        items = value if isinstance(value, list | tuple) else [value]
        names = list(dict.fromkeys(str(name).strip() for name in items))
        if not (names := [name for name in names if name]):
            self.fail("names no gene.", param, ctx)
        return names


class Several(click.ParamType):
    """Values of one type, separated by commas."""

    def __init__(self, item: click.ParamType) -> None:
        self.item = item
        self.name = f"{item.name},…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """List of values without doubles, in the order given; a single value of a config file is a list of one."""
        given = value.split(",") if isinstance(value, str) else value
        items = given if isinstance(given, list | tuple) else [given]
        parts = [one.strip() if isinstance(one, str) else one for one in items]
        return list(dict.fromkeys(self.item.convert(part, param, ctx) for part in parts))


def expected(param: click.Parameter) -> str:
    """What a value of an option must be, in words; empty for types whose own message says it."""
    kind = param.type
    if isinstance(kind, click.Choice):
        words = f"one of {listed(kind.choices, 20)}"
    elif isinstance(kind, click.types.BoolParamType):
        words = "true or false"
    elif isinstance(kind, click.types.IntParamType | click.types.FloatParamType):
        words = "a whole number" if isinstance(kind, click.types.IntParamType) else "a number"
        least, most = getattr(kind, "min", None), getattr(kind, "max", None)
        above, below = getattr(kind, "min_open", False), getattr(kind, "max_open", False)
        low = "" if least is None else f", above {least:g}" if above else f", {least:g} or more"
        words += low + ("" if most is None else f", below {most:g}" if below else f", {most:g} at most")
    else:
        return ""
    return f"{words}, or a list of such values" if getattr(param, "multiple", False) else words


def merged(mappings: tuple[Mapping[str, Any], ...]) -> dict[str, Any]:
    """One mapping of an option that may be given several times; the last one wins."""
    return {name: value for one in mappings for name, value in one.items()}
