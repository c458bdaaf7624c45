"""Parameters in YAML, from files of anybody: no code is run, and nothing grows beyond what is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sealst._errors import DataError
from sealst._files import as_path, read_text
from sealst._validate import shown

_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
#: values in all and below each other: parameters have few, and references let a few lines stand for billions
_MOST_VALUES, _DEEPEST = 100_000, 30


def from_yaml(value: Any) -> Any:
    """Mapping in a YAML file where a path is given, the value itself otherwise."""
    if not isinstance(value, (str, Path)):
        return value
    path = as_path(value, argument="params")
    try:
        found = parse_yaml(read_text(path))
    except (OSError, DataError) as error:
        raise DataError(f"Parameters could not be read from {str(path)!r}: {error}") from error
    if not isinstance(found, Mapping):
        raise DataError(f"{str(path)!r} must hold names and values, such as 'epochs: 5'; found {shown(found)}.")
    return dict(found)


def parse_yaml(text: str) -> Any:
    """Value of YAML text; ``1e-3`` is a number, as in YAML 1.2 and unlike in YAML 1.1, to which pyyaml keeps.

    Raises
    ------
    DataError
        When it is no YAML, names a key twice or a type of its own, or stands for more than parameters can be.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        # A SafeLoader: no code is run.
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if twice := [key for key in dict.fromkeys(keys) if keys.count(key) > 1]:
                raise DataError(f"{shown(twice[0])} stands twice in it.")
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
    try:
        _check_depth(yaml.parse(text, Loader))
        found = yaml.load(text, Loader)
    except DataError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise DataError(f"It is no YAML that holds parameters: {' '.join(str(error).split())[:400]}.") from error
    _check_size(found)
    return found


def _check_depth(events: Any) -> None:
    depth = 0
    for event in events:
        depth += type(event).__name__.endswith("StartEvent") - type(event).__name__.endswith("EndEvent")
        # Stream and document are two.
        if depth > _DEEPEST + 2:
            raise DataError(f"Its values lie more than {_DEEPEST} deep in each other, which no parameter does.")


def _check_size(found: Any) -> None:
    left, n = [found], 0
    while left:
        one = left.pop()
        n += 1
        if n > _MOST_VALUES:
            raise DataError(f"It stands for more than {_MOST_VALUES:,} values, which no parameters have.")
        left += list(one.values()) if isinstance(one, dict) else one if isinstance(one, list | tuple) else []
