"""Options that a public function states already: type, default and help come from its signature and docstring.

Both are read from the source when a command is used, so that no page of help waits for torch to be imported.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar

import click

from sealst._docs import filled
from sealst.cli._types import EXISTING, EXISTING_FILE, Genes, YamlMapping

F = TypeVar("F", bound=Callable[..., Any])

_PACKAGE = Path(__file__).parents[1]
#: types of options by parts of annotations; the first that is there counts
_TYPES: dict[str, click.ParamType] = {
    **dict.fromkeys(("SpatialData", "Sequence[SpatialData]", "Bags"), EXISTING),
    **dict.fromkeys(("AnnData", "GenePanel", "Path", "PathLike[str]", "os.PathLike[str]"), EXISTING_FILE),
    "float": click.FLOAT,
    "str": click.STRING,
    "Sequence[str]": Genes(),
}
#: what help says of options that take several values
_REPEATED, _NAMES = "May be repeated.", "By commas, or a text file with one per line."


@dataclass(frozen=True)
class Argument:
    """What a function says about one of its arguments."""

    #: parts of the annotation, without None
    kinds: tuple[str, ...]
    required: bool
    default: Any
    #: sentences on it
    text: tuple[str, ...]


def options_of(function: str, *names: str, **changes: Mapping[str, Any]) -> Callable[[F], F]:
    """Decorate a command with options for arguments of a public function.

    Parameters
    ----------
    function
        Its name below ``sealst``, such as ``"tl.embed"``.
    names
        Arguments, in the order of the help page.
    changes
        Settings of `click.option` where an option differs from its argument, by argument; `flag` is another flag,
        `sentences` the number of those that help takes from the docstring (1). Arguments that are not among `names`
        follow them.
    """
    chosen = list(dict.fromkeys([*names, *changes]))

    def decorate(command: F) -> F:
        for name in reversed(chosen):
            own = dict(changes.get(name, {}))
            flag = own.pop("flag", f"--{name.replace('_', '-')}")
            command = click.option(flag, name, cls=Derived, function=function, argument=name, changes=own)(command)
        return command

    return decorate


class Derived(click.Option):
    """Place of an option whose settings are not read yet; a command asks for what is `made` of it."""

    def __init__(self, declared: list[str], *, function: str, argument: str, changes: Mapping[str, Any]) -> None:
        super().__init__(declared)
        self._flag, self._function, self._argument, self._changes = declared[0], function, argument, changes

    def made(self) -> click.Option:
        """The option."""
        stated, own = argument(self._function, self._argument), dict(self._changes)
        text = " ".join(stated.text[: own.pop("sentences", 1)])
        settings: dict[str, Any] = {"default": stated.default, "show_default": True, "required": stated.required}
        settings |= ({} if "type" in own else _typed(stated)) | own
        several = _REPEATED if settings.get("multiple") else _NAMES if isinstance(settings.get("type"), Genes) else ""
        settings.setdefault("help", f"{text} {several}".strip())
        if settings["required"] or settings["default"] == ():
            del settings["default"]
        elif settings.get("multiple") and not isinstance(settings["default"], tuple | NoneType):
            settings["default"] = (settings["default"],)
        flag = self._flag
        if settings.get("is_flag") and settings["default"] is not False:
            flag = f"{flag}/--no-{flag.removeprefix('--')}"
        return click.Option([flag, self._argument], **settings)


def _typed(stated: Argument) -> dict[str, Any]:
    """Settings of an option by annotation and default; whole numbers are counts."""
    kinds = stated.kinds
    if kinds == ("bool",):
        return {"is_flag": True}
    if kinds == ("int",):
        return {"type": click.IntRange(min=0 if stated.default == 0 else 1)}
    if kinds[0].startswith("Literal["):
        return {"type": click.Choice(ast.literal_eval(kinds[0].removeprefix("Literal")))}
    if any(kind.startswith("Mapping[") for kind in kinds):
        return {"type": YamlMapping(word="str" in kinds and "Path" not in kinds)}
    found = next((kind for kind in _TYPES if kind in kinds), "str")
    return {"type": _TYPES[found], "multiple": any(f"Sequence[{kind}]" in kinds for kind in kinds)}


@cache
def argument(function: str, name: str) -> Argument:
    """What a public function says about one of its arguments, read from its source."""
    package, _, short = function.partition(".")
    node, module = _defined(_PACKAGE / package / "__init__.py", short)
    if isinstance(node, ast.FunctionDef):
        stated = dict(_arguments(node.args))
        for given, default in stated.items():
            if given.arg == name:
                doc = filled(ast.get_docstring(node) or "")
                section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w+\n-+$|\Z)", doc, flags=re.M | re.S)
                found = re.findall(r"^(\w[\w, ]*)\n((?:^ .*\n?|^\n)+)", section[1] if section else "", flags=re.M)
                words = next((words for listed, words in found if name in listed.split(", ")), None)
                text = () if words is None else _sentences(words, {one.arg for one in stated})
                return Argument(tuple(_kinds(given.annotation)), default is None, _value(default, module), text)
    raise LookupError(f"sealst.{function} has no argument {name!r}, of which the command line makes an option.")


def _arguments(node: ast.arguments) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    """Arguments and their defaults."""
    positional = [*node.posonlyargs, *node.args]
    lacking: list[ast.expr | None] = [None] * (len(positional) - len(node.defaults))
    yield from zip(positional, [*lacking, *node.defaults], strict=True)
    yield from zip(node.kwonlyargs, node.kw_defaults, strict=True)


def _kinds(annotation: ast.expr | None) -> list[str]:
    if isinstance(annotation, ast.BinOp):
        return [*_kinds(annotation.left), *_kinds(annotation.right)]
    name = "Any" if annotation is None else ast.unparse(annotation)
    return [] if name == "None" else [name]


def _sentences(text: str, names: Collection[str]) -> tuple[str, ...]:
    """Sentences of a docstring without their mark-up; other arguments become options."""
    plain = re.sub(r"``\"?(.*?)\"?``", r"\1", " ".join(text.split()))
    plain = re.sub(r"`(.*?)`", lambda m: f"--{m[1].replace('_', '-')}" if m[1] in names else m[1], plain)
    if (act := plain.removeprefix("Whether to ")) != plain:
        plain = act[0].upper() + act[1:].replace(", and to ", ", and ")
    return tuple(re.split(r"(?<!e\.g)(?<=\.) (?=[A-Z])", plain))


# -- constants --------------------------------------------------------------------------------------------------------
@cache
def _tree(module: Path) -> ast.Module:
    return ast.parse(module.read_text(encoding="utf-8"))


def _statements(module: ast.Module) -> list[ast.stmt]:
    """Statements of a module, those among them that only type checkers see: there packages say what they offer."""
    inside = [node.body if isinstance(node, ast.If) else [node] for node in module.body]
    return [one for several in inside for one in several]


def _defined(module: Path, name: str) -> tuple[ast.AST, Path]:
    """What a name of a module stands for, and the module of the package that defines it."""
    # From the end: what overloads declare stands before the function itself.
    for node in reversed(_statements(_tree(module))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return node, module
        if isinstance(node, ast.Assign) and name in (assigned := _assigned(node)):
            return assigned[name], module
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("sealst."):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    path = _PACKAGE.joinpath(*str(node.module).split(".")[1:])
                    return _defined(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"), alias.name)
    raise LookupError(f"{module} does not define {name!r}.")


def _assigned(node: ast.Assign) -> dict[str, ast.expr]:
    """Values by name, of ``a = 1`` and of ``a, b = 1, 2``."""
    found: dict[str, ast.expr] = {}
    for target in node.targets:
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            found |= {e.id: v for e, v in zip(target.elts, node.value.elts, strict=True) if isinstance(e, ast.Name)}
        elif isinstance(target, ast.Name):
            found[target.id] = node.value
    return found


def _value(node: ast.AST | None, module: Path) -> Any:
    """Value of a default: a literal, a constant of a module, or one of a class."""
    if isinstance(node, ast.Name):
        return _value(*_defined(module, node.id))
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        owner, _ = _defined(module, node.value.id)
        inside = [_assigned(n) for n in getattr(owner, "body", []) if isinstance(n, ast.Assign)]
        return ast.literal_eval(next(names[node.attr] for names in inside if node.attr in names))
    return None if node is None else ast.literal_eval(ast.unparse(node))
