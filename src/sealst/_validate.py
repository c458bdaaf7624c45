"""Checks of user input, with one wording: what was expected, what was found, what to do."""

from __future__ import annotations

import difflib
import importlib
import logging
import re
import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, cast

import numpy as np

from sealst._errors import DataError, MissingKeyError, OrderError


def need(module: str, *, extra: str, what: str) -> Any:
    """Import a module of an extra, or say what to install.

    Parameters
    ----------
    module
        Dotted name of the module.
    extra
        Name of the extra of sealst that brings it.
    what
        What needs it, as the start of a sentence.

    Returns
    -------
    The module.

    Raises
    ------
    OrderError
        When the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise OrderError(
            f'{what} needs {error.name or module!r}, which is not installed: `pip install "sealst[{extra}]"`.'
        ) from error


P = TypeVar("P")
#: bytes of a name that files are called by
MAX_NAME = 200
_CONTROL = re.compile(r"[\x00-\x1f]")
_NOT_IN_FILES = re.compile(r'[\\/<>:"|?*\x00-\x1f]|^\.|[. ]$')
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))}
_WHOLE = re.compile(r"^(-?\d+)\.0+$")


_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxlong, _REPR.maxother = 3, 80, 60, 200


def shown(value: Any) -> str:
    """A value that anybody may have given as it stands in a message: on one line, and short however large it is."""
    return " ".join(_REPR.repr(value).split())


def listed(names: Iterable[Any], limit: int = 8) -> str:
    """Names as text, cut after `limit`."""
    items = [str(n) for n in names]
    if not items:
        return "none"
    # What is longer was no name.
    texts = (repr(n if len(n) <= MAX_NAME else f"{n[:MAX_NAME]}…") for n in items[:limit])
    return ", ".join(texts) + (f" … ({len(items)} in all)" if len(items) > limit else "")


def near(names: Iterable[Any], known: Iterable[Any]) -> str:
    """`` Did you mean 'views'?`` for names that nearly are known ones, else nothing."""
    by_lower = {str(k).lower(): str(k) for k in known}
    found = [m for n in names for m in difflib.get_close_matches(str(n).lower(), list(by_lower), n=1, cutoff=0.7)]
    return f" Did you mean {' and '.join(repr(by_lower[m]) for m in dict.fromkeys(found))}?" if found else ""


def check_key(container: Collection[Any], key: str, *, where: str, hint: str) -> None:
    """Raise `MissingKeyError` unless `key` is in `container`."""
    if key not in container:
        found = f"found: {listed(container)}.{near([key], container)}"
        raise MissingKeyError(f"{key!r} not found in {where}; {found} {hint}")


def check_choice(name: str, value: Any, options: Sequence[Any]) -> None:
    """Raise unless `value` is one of `options`."""
    # Not `value not in options`: an array would be compared item by item.
    if not any(isinstance(value, type(one)) and value == one for one in options):
        meant = near([value], options) if isinstance(value, str) else ""
        raise DataError(f"`{name}` must be one of {listed(options, 20)}, found {shown(value)}.{meant}")


def check_positive(name: str, value: float) -> None:
    """Raise unless `value` is a finite number above 0."""
    # True is 1 to Python, and no size to anybody.
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not np.isfinite(value) or value <= 0:
        raise DataError(f"`{name}` must be a positive number, found {value!r}.")


def positive_numbers(name: str, given: Any, *, example: str) -> list[float]:
    """One positive number or several different ones, as a list; `example` completes the error where there is none."""
    # A text is a sequence, too, of characters.
    several = isinstance(given, Sequence | np.ndarray) and not isinstance(given, str)
    numbers = list(given) if several else [given]
    if not numbers:
        raise DataError(f"`{name}` is empty; {example}.")
    for number in numbers:
        check_positive(name, number)
    if len({f"{number:g}" for number in numbers}) < len(numbers):
        raise DataError(f"`{name}` names a size twice: {listed(numbers)}.")
    return [float(number) for number in numbers]


def check_count(name: str, value: int) -> None:
    """Raise unless `value` is a whole number above 0."""
    check_positive(name, value)
    if not isinstance(value, int | np.integer):
        raise DataError(f"`{name}` must be a whole number, found {value!r}.")


#: µm per pixel between which pictures of tissue lie, the most magnified and thumbnails of whole slides included
_LEAST_MPP, _MOST_MPP = 0.01, 1000.0


def as_numbers(name: str, values: Any, kind: Any = float, *, sparse: bool = False) -> Any:
    """Matrix of numbers of a type, sparse only if it may be; raises where it holds something else, or is no matrix."""
    try:
        values = values.toarray() if hasattr(values, "toarray") and not sparse else values
        if np.iscomplexobj(values):
            raise TypeError("complex numbers")
        found = values.astype(kind) if hasattr(values, "tocsr") else np.asarray(values, dtype=kind)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"`{name}` must hold numbers, found {shown(values)} ({shown(str(error))}).") from error
    if found.ndim not in (1, 2):
        raise DataError(f"`{name}` must have rows and columns, found shape {found.shape}.")
    return found


def check_labels(**given: Any) -> None:
    """Raise unless labels of a section (of one word each, by argument) are text or numbers, or None."""
    for name, value in given.items():
        if not (value is None or isinstance(value, str | int | float | np.number)):
            raise DataError(f"`{name}` must be text, found {shown(value)}.")


def as_names(name: str, values: Any) -> list[Any]:
    """Names as a list; raises where it is a single one, or none."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"`{name}` must be a list of names, found {shown(values)}.")
    return list(values)


def check_mpp(name: str, value: float) -> None:
    """Raise unless `value` may be µm per pixel of a picture of tissue."""
    check_positive(name, value)
    if not _LEAST_MPP <= value <= _MOST_MPP:
        raise DataError(
            f"`{name}` is {value:.4g} µm per pixel; pictures of tissue have {_LEAST_MPP:g} to {_MOST_MPP:g}. Is it in "
            "another unit, such as mm or m?"
        )


#: beyond this the square of a float32 is infinite
_LARGEST = 1e18


def check_embedding(values: Any, *, where: str) -> None:
    """Raise where embeddings are infinite or beyond what can be compared; NaN stands for what has none."""
    x = np.asarray(values)
    if x.dtype.kind == "f" and x.size and (wrong := np.abs(x) > _LARGEST).any():
        worst = x[wrong][0]
        raise DataError(
            f"{where} holds {int(wrong.sum())} values that are infinite or too large to compare (e.g. {worst:.4g}): "
            "it is damaged, or no embedding. Make it anew."
        )


def whole(name: str, value: Any, *, least: int | None = None) -> int:
    """Return a whole number as Python's int, which goes into JSON; raise where it is none, or below `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or (least is not None and value < least):
        bound = "" if least is None else f", {least} or more"
        raise DataError(f"`{name}` must be a whole number{bound}, found {value!r}.")
    return int(value)


def check_fraction(name: str, value: float) -> None:
    """Raise unless `value` lies in [0, 1]."""
    if not isinstance(value, int | float | np.number) or not 0 <= value <= 1:
        raise DataError(f"`{name}` must lie between 0 and 1, found {shown(value)}.")


def check_gene_names(names: Sequence[str], *, where: str) -> None:
    """Raise when gene names are empty or occur twice."""
    index = np.asarray(names, dtype=object)
    empty = [i for i, n in enumerate(index) if not isinstance(n, str) or not n.strip() or n.lower() == "nan"]
    if empty:
        raise DataError(
            f"{len(empty)} empty gene names in {where} (first at column {empty[0]}). "
            "Name or drop these columns, e.g. `adata = adata[:, adata.var_names != '']`."
        )
    values, counts = np.unique(index.astype(str), return_counts=True)
    if (counts > 1).any():
        raise DataError(
            f"Duplicate gene names in {where}: {listed(values[counts > 1])}. "
            "Sum or drop the duplicate columns; `adata.var_names_make_unique()` keeps both under different names."
        )


def check_slot(name: Any, *, argument: str = "key_added") -> None:
    """Raise unless a slot, column or element may be called so wherever it is stored; asked before it is computed."""
    # The rule of SpatialData for names of elements, columns and slots; "_index" is anndata's own.
    allowed = isinstance(name, str) and name not in ("", ".", "..", "_index") and not name.startswith("__")
    if not allowed or not all(c.isalnum() or c in "_-." for c in name) or len(name.encode()) > MAX_NAME:
        raise DataError(
            f"`{argument}` must be a name of letters, digits, '_', '-' and '.' that does not start with '__', "
            f"found {shown(name)}: nothing else can be stored."
        )


def check_section(section: str) -> None:
    """Raise unless a name of a section may name elements of SpatialData."""
    check_slot(section, argument="section")


def as_column(name: str) -> str:
    """Name of a gene, gene set or label as a column on disk: zarr and HDF5 take '/' for a folder."""
    return name.replace("/", "_")


def as_columns(names: Sequence[str], *, what: str) -> list[str]:
    """Names as columns on disk; `what` they name, in the plural.

    Raises
    ------
    DataError
        When two names would share a column, or one cannot be that of a column.
    """
    columns = [as_column(name) for name in names]
    slashed = [name for name, column in zip(names, columns, strict=True) if name != column]
    if len(set(columns)) < len(set(names)):
        raise DataError(
            f"{what} {listed(slashed)} would be stored with '_' for '/', but these names exist already; rename them."
        )
    refused = ("", ".", "..", "_index")
    if wrong := [n for n in columns if n in refused or len(n.encode()) > MAX_NAME or _CONTROL.search(n)]:
        raise DataError(f"{what} {listed(wrong)} cannot be columns on disk; rename them.")
    if slashed:
        said = "'/' becomes '_' in the names of %d %s, so that they can be saved: %s"
        # By name: `_logging` knows the settings, which are checked here.
        logging.getLogger("sealst").info(said, len(slashed), what.lower(), listed(slashed))
    return columns


def section_name(name: str) -> str:
    """Name of a section made from any text, such as a file's name."""
    return re.sub(r"[^\w.-]", "_", name).lstrip("_.") or "section"


def as_text(value: Any) -> str:
    """A name or label as text: 1.0, which missing values make of 1, is 1."""
    is_whole = isinstance(value, float | np.floating) and float(value).is_integer()
    return str(int(value)) if is_whole else str(value)


def patient_text(value: Any) -> str | None:
    """Name of a patient, without spaces at its ends; None where missing."""
    import pandas as pd

    if pd.isna(value):
        return None
    # A number that was made text elsewhere is the number: 1, "1", 1.0 and "1.0" are one patient.
    return _WHOLE.sub(r"\1", as_text(value).strip()) or None


def patient_names(column: Any) -> Any:
    """Patients of a column (a pandas Series) as text, None where missing; the one answer to who is the same patient.

    Asked before rows are joined, since that may turn 1 into 1.0.
    """
    import pandas as pd

    return pd.Series([patient_text(value) for value in column], index=column.index, dtype=object)


def check_file_name(name: str, *, what: str) -> None:
    """Raise unless a file may be called so on every system, with some room for an ending; `what` says what it names."""
    reserved = name.split(".")[0].casefold() in _RESERVED
    if not name or reserved or _NOT_IN_FILES.search(name) or len(name.encode()) > MAX_NAME:
        raise DataError(
            f"{what} {name!r} cannot name a file on every system. Expected at most {MAX_NAME} bytes, none of "
            "/ \\ < > : \" | ? *, no '.' at either end, no space at the end, and no device of Windows such as CON. "
            "Give it another name."
        )


#: far beyond what is counted of a gene, and sums of so many are finite in float32
_MOST_COUNTS = 2**40


def check_counts(x: Any, *, where: str, kept: str = "") -> None:
    """Raise unless a dense or sparse matrix holds raw counts: finite, not negative, whole numbers, not all zero.

    `kept` says where else raw counts may be had; by default in a layer.
    """
    values = np.asarray(x.data if hasattr(x, "tocsr") else x)
    hint = "Raw counts are needed; " + (kept or "if they are kept elsewhere, name the layer with `layer=`.")
    if values.dtype.kind not in "biuf":
        raise DataError(f"{where} holds {values.dtype} values, which are no counts. {hint}")
    if values.size == 0 or not values.any():
        raise DataError(f"{where} holds no counts: every value is zero. {hint}")
    if not np.isfinite(values).all():
        raise DataError(f"{where} holds NaN or infinite values. {hint}")
    if values.min() < 0:
        raise DataError(f"{where} holds negative values (lowest {values.min():.4g}). {hint}")
    if values.max() > _MOST_COUNTS:
        raise DataError(f"{where} holds {values.max():.4g}, more than anything is counted. {hint}")
    fractional = values[values != np.round(values)]
    if fractional.size:
        raise DataError(
            f"{where} does not hold raw counts: {fractional.size / values.size:.0%} of the stored values are not whole "
            f"numbers (e.g. {fractional[0]:.4g}), so they look normalised. {hint}"
        )


def resolve_params(cls: type[P], value: P | Mapping[str, Any] | None, *, name: str) -> P:
    """Turn ``None``, an instance or a mapping into an instance of the parameter dataclass `cls`."""
    if value is None:
        return cls()
    if isinstance(value, cls):
        return value
    if isinstance(value, Mapping) and is_dataclass(cls):
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(value) - set(known), key=str):
            meant = near(unknown, known)
            raise DataError(f"`{name}` has no field {listed(unknown)}; known: {listed(known, 40)}.{meant}")
        # numpy scalars would not go into JSON later on.
        return cls(**{k: v.item() if isinstance(v, np.generic) else v for k, v in value.items()})
    raise TypeError(f"`{name}` must be None, a mapping or {cls.__name__}, found {type(value).__name__}.")


def resolve_kind(registry: Mapping[str, type[P]], given: Any, *, name: str, base: type, default: str) -> P:
    """One of several parameter classes: from the name of its kind, from its fields with ``"kind"``, or as it is."""
    if isinstance(given, base):
        return cast("P", given)
    if given is not None and not isinstance(given, str | Mapping):
        what = name.replace("_", " ")
        article = "an" if what[0] in "aeiou" else "a"
        raise TypeError(
            f"`{name}` must be a name, a mapping or {article} {what}'s parameters, found {type(given).__name__}."
        )
    values: dict[str, Any] = {"kind": given} if isinstance(given, str) else dict(given or {})
    kind = values.pop("kind", default)
    check_choice(name, kind, sorted(registry))
    return resolve_params(registry[kind], values, name=name)
