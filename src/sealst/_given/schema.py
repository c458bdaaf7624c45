"""Types and bounds of values that come from outside: parameters of calls, and files in folders of anybody.

A class states its fields as annotations; `check_fields` (dataclasses) and `Stored` (JSON) hold values against them.
What is refused is named by its key, with what was found and what was expected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PydanticUserError,
    ValidationError,
    create_model,
)

from sealst._errors import CheckpointError, DataError, SealstError
from sealst._files import read_json
from sealst._validate import listed, near, shown

_STRICT = ConfigDict(strict=True, protected_namespaces=(), arbitrary_types_allowed=True, hide_input_in_errors=True)


def _truth(cell: Any) -> Any:
    # Other words ("yes", "on", "1") would be read as one of the two; a list is none.
    return {"True": True, "False": False}.get(cell, [cell]) if isinstance(cell, str) else cell


# -- types of fields --------------------------------------------------------------------------------------------------
#: far beyond what any of these is, and little enough to be computed with
_MOST, _WIDEST, _MOST_BLOCKS = 2**40, 2**16, 256

#: how many of something; 0 where it may be none
Count = Annotated[int, Field(gt=0, le=_MOST)]
Number = Annotated[int, Field(ge=0, le=_MOST)]
#: width of a layer, length of an embedding, side of a crop in pixels
Width = Annotated[int, Field(gt=0, le=_WIDEST)]
#: layers, blocks, flows, heads: each is built one by one
Blocks = Annotated[int, Field(gt=0, le=_MOST_BLOCKS)]
#: rank of a matrix that is learned beside another one
Rank = Annotated[int, Field(gt=0, le=2**12)]
MaybeBlocks = Annotated[int, Field(ge=0, le=_MOST_BLOCKS)]
Workers = Annotated[int, Field(ge=0, le=_MOST_BLOCKS)]
Widths = Annotated[tuple[Width, ...], Field(strict=False, max_length=_MOST_BLOCKS)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
#: what similarities from -1 to 1 are divided by
Temperature = Annotated[float, Field(ge=1e-3, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
#: True or False, in a cell of a table in these words alone
Truth = Annotated[bool, BeforeValidator(_truth)]
#: mean and deviation of the channels of pictures
Channels = Annotated[tuple[Finite, ...], Field(strict=False, min_length=3, max_length=3)]
Deviations = Annotated[tuple[Positive, ...], Field(strict=False, min_length=3, max_length=3)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]
Share = Annotated[float, Field(ge=0, le=1)]
#: a name or a line, and what a file may say of itself
Name = Annotated[str, Field(min_length=1, max_length=500)]
Text = Annotated[str, Field(max_length=5000)]
Names = Annotated[tuple[Name, ...], Field(strict=False)]


def _plain_args(given: Any) -> Any:
    """Arguments of a constructor: JSON values that build nothing huge."""
    if not isinstance(given, Mapping):
        raise ValueError("must be a mapping")
    for key, value in given.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            number = isinstance(one, int | float) and not isinstance(one, bool)
            most = _MOST_BLOCKS if str(key).startswith("depth") else _WIDEST
            if number and not abs(one) <= most:
                raise ValueError(f"must have {key!r} of at most {most}")
            if not (number or one is None or isinstance(one, bool) or (isinstance(one, str) and len(one) <= 200)):
                raise ValueError(f"must have a plain value for {key!r}")
    return given


#: arguments of a network's constructor
Args = Annotated[Mapping[str, Any], BeforeValidator(_plain_args)]


def one_of(*options: str) -> AfterValidator:
    """Part of an annotation: a name that must be one of these."""
    return _known(lambda: options)


def one_in(*registries: Mapping[str, Any]) -> AfterValidator:
    """Part of an annotation: a name that one of these knows when it is given, as registries may grow."""
    return _known(lambda: sorted(known for registry in registries for known in registry))


def _known(options_now: Callable[[], Sequence[str]]) -> AfterValidator:
    def check(name: str) -> str:
        if name not in (options := options_now()):
            raise ValueError(f"must be one of {listed(options, 20)}, found {shown(name)}.{near([name], options)}")
        return name

    return AfterValidator(check)


def _without_folder(name: str) -> str:
    if name in (".", "..") or set(name) & set("/\\:\0"):
        raise ValueError("must be the name of a file, without a folder")
    return name


#: name of a file that lies in the folder itself
FileName = Annotated[Name, AfterValidator(_without_folder)]


# -- checks -----------------------------------------------------------------------------------------------------------
def check_fields(params: Any, name: str, *, kind: type[SealstError] = DataError) -> None:
    """Raise where a field of a parameter dataclass is not what its annotation says; `name` is what users call it.

    Fields are then plain values: numpy scalars, which do not go into JSON, become numbers, lists become tuples.
    """
    cls: Any = type(params)
    values = {f.name: getattr(params, f.name) for f in fields(params)}
    values = {k: v.item() if isinstance(v, np.generic) else v for k, v in values.items()}
    try:
        found = _model(cls).model_validate(values)
    except ValidationError as error:
        raise kind(_problem(error, prefix=name)) from None
    for key, value in values.items():
        # As it was stated otherwise: 8 is not to become 8.0, which fingerprints tell apart.
        object.__setattr__(params, key, getattr(found, key) if isinstance(value, list) else value)


@cache
def _model(cls: Any) -> type[BaseModel]:
    hints = get_type_hints(cls, include_extras=True)
    stated: dict[str, Any] = {f.name: (hints[f.name], ...) for f in fields(cls)}
    return create_model(cls.__name__, __config__=_STRICT, **stated)


S = TypeVar("S", bound="Stored")


class Stored(BaseModel):
    """Base of what a JSON file of a folder holds; keys that are not known may be there and are not looked at."""

    model_config = _STRICT | ConfigDict(frozen=True)

    @classmethod
    def of(
        cls: type[S], content: Any, *, where: str, kind: type[SealstError] = CheckpointError, cells: bool = False
    ) -> S:
        """The content of a file; `where` says which, `kind` is the error where it is another.

        Of a line of a table its `cells` are text, and what is empty is None.
        """
        try:
            if cells:
                return cls.model_validate({name: cell or None for name, cell in content.items()}, strict=False)
            return cls.model_validate(content)
        except ValidationError as error:
            raise kind(f"{where} is damaged, or of another version: {_problem(error)}") from None

    @classmethod
    def read(cls: type[S], path: Path, *, kind: type[SealstError] = CheckpointError) -> S:
        """What a JSON file holds, see `of` and `sealst._files.read_json`."""
        return cls.of(read_json(path, kind=kind), where=repr(str(path)), kind=kind)


def check_type(expected: Any, content: Any, *, where: str, kind: type[SealstError] = DataError) -> None:
    """Raise where something is not of a type, which may be any annotation; `where` says what it is."""
    try:
        _holder(expected).model_validate({"content": plain(content)})
    except ValidationError as error:
        raise kind(f"{where} is damaged, or of another version: {_problem(error, skip=1)}") from None


def misfit(expected: Any, value: Any, *, name: str) -> DataError | None:
    """What is wrong with an argument that is not of its type; None where it is, or the type cannot be told."""
    problems: list[Any] = []
    for given in (value, plain(value)):
        try:
            _holder(expected).model_validate({"content": given})
        except ValidationError as error:
            problems = problems or list(error.errors(include_url=False))
        except (PydanticUserError, TypeError):
            return None
        else:
            return None
    # Of several types that it might have, each says what it would be.
    wanted = " or ".join(dict.fromkeys(_said(one).removeprefix("must be ") for one in problems[:6]))
    return DataError(f"`{name}` must be {wanted}, found {shown(problems[0]['input'])}.")


@cache
def _holder(expected: Any) -> type[BaseModel]:
    return create_model("Holder", __config__=_STRICT, content=(expected, ...))


def plain(content: Any) -> Any:
    """The same in the types of JSON: on disk, text and numbers become numpy's."""
    if isinstance(content, Mapping):
        return {str(key): plain(value) for key, value in content.items()}
    if isinstance(content, np.generic):
        return content.item()
    if isinstance(content, np.ndarray | list | tuple):
        return [plain(one) for one in (content.tolist() if isinstance(content, np.ndarray) else content)]
    return content


#: what is expected, in words, by kind of error
_WORDS = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a number",
    "bool_type": "must be True or False",
    "int_parsing": "must be a whole number",
    "float_parsing": "must be a number",
    "bool_parsing": "must be True or False",
    "string_type": "must be text",
    "dict_type": "must be a mapping",
    "mapping_type": "must be a mapping",
    "model_type": "must be a mapping",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "sequence_str": "must be a list",
    "path_type": "must be a path",
    "is_instance_of": "must be {class}",
    "greater_than_equal": "must be {ge} or more",
    "less_than_equal": "must be at most {le}",
    "missing": "is missing",
}


#: the same of classes that have a word
_KINDS = {"Sequence": "must be a list", "ndarray": "must be an array", "PathLike": "must be a path"}


def _problem(error: ValidationError, *, prefix: str = "", skip: int = 0) -> str:
    """The first of the errors in one line: key, what was expected, what was found."""
    first = error.errors(include_url=False)[0]
    # Positions in a list say little, and less which of several types was tried.
    place = [str(part)[:60] for part in first["loc"][skip:] if not isinstance(part, int) and "[" not in part]
    key = ".".join([*filter(None, [prefix]), *place])
    key = key or "it"
    if first["type"] == "missing":
        return f"`{key}` is missing."
    said = _said(first)
    return f"`{key}` {said}" if ", found " in said else f"`{key}` {said}, found {shown(first['input'])}."


def _said(problem: Any) -> str:
    """What was expected, in words."""
    context = {k: f"{v:g}" if isinstance(v, int | float) else v for k, v in problem.get("ctx", {}).items()}
    if problem["type"] == "greater_than" and context["gt"] == "0":
        return "must be a positive number"
    if problem["type"] in _WORDS:
        return _KINDS.get(str(context.get("class")), _WORDS[problem["type"]]).format(**context)
    said = str(problem["msg"]).removeprefix("Value error, ").replace("Input should", "must")
    said = said.replace("be an instance of", "be")
    return said if said.startswith("must") else f"is not as expected ({said[:200]})"
