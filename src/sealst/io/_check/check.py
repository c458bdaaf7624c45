"""Say what a section is, and what will go wrong with it, before anything is computed."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from sealst import _section
from sealst._docs import documented
from sealst._errors import DataError, SealstError
from sealst._files import expanded
from sealst._keys import Keys
from sealst._section.pyramid import SlideImage
from sealst._validate import listed
from sealst.io._anndata import from_anndata
from sealst.io._check import section_rules as _check_rules
from sealst.io._check import table_rules as _check_table
from sealst.io._check.subject import Fact, Options, Problem, Subject, collected_warnings, warnings_as_problems
from sealst.io._stores.formats import format_of
from sealst.io._stores.saving import is_unfinished
from sealst.io._stores.store import read_checked

_COLUMNS = ("region", "topic", "name", "value")
_MARKS = {"error": "✗ error", "warning": "! warning"}


@dataclass(frozen=True, eq=False, repr=False)
class CheckReport:
    """What `sealst.io.check` found.

    Parameters
    ----------
    target
        What was checked.
    format
        Format that was recognised, ``"SpatialData"`` for an object.
    facts
        DataFrame with columns `region` (empty for the whole section), `topic`, `name` and `value`.
    problems
        Pairs of level and text: an ``"error"`` makes a call refuse, a ``"warning"`` should be known; the text says
        what to do.
    """

    target: str
    format: str
    facts: pd.DataFrame
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings may be left."""
        return not any(problem.level == "error" for problem in self.problems)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {
            "target": self.target,
            "format": self.format,
            "ok": self.ok,
            "facts": self.facts.to_dict("records"),
            "problems": [problem._asdict() for problem in self.problems],
        }

    def __str__(self) -> str:
        lines = [f"{self.target}: {self.format}"]
        for (region, topic), facts in self.facts.groupby(["region", "topic"], sort=False):
            lines.append(f"\n{topic}" + (f" of {region}" if region else ""))
            width = max(map(len, facts["name"]))
            lines += [f"  {name:<{width}}  {value}" for name, value in zip(facts["name"], facts["value"], strict=True)]
        lines.append("\nNo problems found." if not self.problems else "")
        lines += [f"{_MARKS[problem.level]}: {problem.text}" for problem in self.problems]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = []
        for (region, topic), facts in self.facts.groupby(["region", "topic"], sort=False):
            title = html.escape(f"{topic} of {region}" if region else topic)
            rows.append(f"<tr><th colspan='2' style='text-align:left'>{title}</th></tr>")
            for name, value in zip(facts["name"], facts["value"], strict=True):
                cells = (f"<td style='text-align:left'>{html.escape(str(cell))}</td>" for cell in (name, value))
                rows.append(f"<tr>{''.join(cells)}</tr>")
        items = "".join(f"<li><b>{p.level}</b>: {html.escape(p.text)}</li>" for p in self.problems)
        problems = f"<ul>{items}</ul>" if items else "<p>No problems found.</p>"
        head = f"<p><b>{html.escape(self.target)}</b>: {html.escape(self.format)}</p>"
        return f"<div>{head}{problems}<table>{''.join(rows)}</table></div>"


@documented
def check(
    data: SpatialData | AnnData | str | PathLike[str],
    *,
    region: str | None = None,
    image_key: str | None = None,
    coordinate_system: str = "global",
    mpp: float | None = None,
    pitch_um: float | None = None,
    spot_um: float | None = None,
    table_key: str = Keys.TABLE,
    image: str | PathLike[str] | np.ndarray | SlideImage | None = None,
    format: str | None = None,
    **options: Any,
) -> CheckReport:
    """Report what a section holds and which calls will refuse it, with what to do.

    It says what was recognised, where the physical scale comes from, how the spots lie on the image and on its tissue,
    what the genes are called and whether raw counts are there. Bad data does not raise, it is reported. Of the image
    a coarse level is read (all of it, once, where the file of a folder has none); nothing is written.

    Parameters
    ----------
    data
        SpatialData, or a folder or file that `sealst.io.read` reads. Of an AnnData the table is looked at; with
        `image` it is checked as the section that `sealst.io.from_anndata` would make of both.
    region
        Region of the table; by default all.
    image_key, coordinate_system, mpp, pitch_um, spot_um
        As they would be passed to `sealst.pp.pair_crops`.
    %(table_key)s
    image
        Full-resolution image of an AnnData, or passed on to the reader of a folder where it lies elsewhere.
    format, options
        As they would be passed to `sealst.io.read`: the format where several fit, and further arguments of the reader,
        such as ``counts="raw"``, ``sample="A1"``, ``bin_um=16``, or ``layer="counts"`` for an AnnData.

    Returns
    -------
    `CheckReport` with ``ok``, ``facts`` and ``problems``; printed, it is readable as it is.

    Examples
    --------
    >>> report = sl.io.check(sl.datasets.synthetic(size_um=600))
    >>> report.ok
    True
    """
    if isinstance(data, SpatialData) and (given := [*options, *(["format"] if format is not None else [])]):
        raise DataError(
            f"{listed(given)}: these are for a reader, and `data` is a SpatialData already; leave them out."
        )
    stated_by_caller = Options(image_key, coordinate_system, mpp, pitch_um, spot_um)
    facts: list[tuple[str, Fact]] = []
    problems: list[Problem] = []

    def note(findings: Iterable[Fact | Problem], about: str = "") -> None:
        for one in findings:
            if isinstance(one, Fact):
                facts.append((about, one))
            elif one not in problems:
                problems.append(one)

    target, kind = "SpatialData", "SpatialData"
    sdata = data if isinstance(data, SpatialData) else None
    if isinstance(data, AnnData):
        target = kind = "AnnData"
        stated = {"image": image, "mpp": mpp, "pitch_um": pitch_um, "spot_um": spot_um}
        sdata, found = _with_picture(data, {n: v for n, v in stated.items() if v is not None} | options)
        note(found)
    elif sdata is None:
        target = str(data)
        reading = options | {name: value for name, value in {"mpp": mpp, "image": image}.items() if value is not None}
        kind, sdata, found = _open(Path(data), format, reading, options)
        note(found)
    if sdata is not None:
        note(_findings(_check_rules.elements, sdata))
        note(_findings(_check_rules.pictures, sdata))
        subjects: list[Subject] = []
        if not sdata.tables:
            text = "There is no table, as with a slide without spots. Cut it into tiles: `sl.pp.tile(sdata)`."
            note([Problem("warning", text)])
        else:
            try:
                table = _section.get_table(sdata, table_key)
                subjects = [Subject(sdata, table, one, stated_by_caller) for one in _section.regions_of(table, region)]
            except Exception as error:  # noqa: BLE001 - the report is where any failure belongs
                note([Problem("error", _message(error))])
        for subject in subjects:
            # A slide has no genes.
            of_table = _check_table.RULES if subject.table.n_vars else (_check_table.genes, _check_table.people)
            for rule in (*_check_rules.RULES, *of_table):
                note(_findings(rule, subject), subject.region.name)
    frame = pd.DataFrame([(about, *fact) for about, fact in facts], columns=list(_COLUMNS))
    problems.sort(key=lambda problem: problem.level)
    return CheckReport(target, kind, frame, tuple(problems))


def _open(
    path: Path, format: str | None, reading: dict[str, Any], options: dict[str, Any]
) -> tuple[str, SpatialData | None, list[Fact | Problem]]:
    """Section at a path, read with `reading`; of a store, which knows its scale, with `options` alone."""
    kind, sdata, problems = "not recognised", None, []
    with collected_warnings() as caught:
        try:
            path = expanded(path)
            found = format_of(path, format)
            if found.name == "h5ad" and "image" not in reading:
                with closing((table := ad.read_h5ad(path, backed="r")).file):
                    return "AnnData (anndata.read_h5ad)", None, list(_bare_table(table))
            kind = f"{found.name} ({found.reader})"
            if found.name == "zarr":
                # As it is: `sl.io.read` would finish a save that was cut off. Its scale is compared with `mpp` later.
                sdata = read_checked(path, **options)
                if is_unfinished(path):
                    problems.append(Problem("warning", "A save was cut off; `sl.io.read(path)` finishes it."))
            else:
                sdata = found.read(path, **reading)
        except Exception as error:  # noqa: BLE001 - the report is where any failure belongs
            problems.append(Problem("error", _message(error)))
    return kind, sdata, [*problems, *warnings_as_problems(caught)]


def _with_picture(data: AnnData, options: dict[str, Any]) -> tuple[SpatialData | None, list[Fact | Problem]]:
    """Section of an AnnData and its picture; without one what can be said of the table."""
    if "image" not in options:
        return None, list(_bare_table(data))
    sdata: SpatialData | None = None
    problems: list[Fact | Problem] = []
    with collected_warnings() as caught:
        try:
            sdata = from_anndata(data, **options)
        except Exception as error:  # noqa: BLE001 - the report is where any failure belongs
            problems.append(Problem("error", _message(error)))
    return sdata, [*problems, *warnings_as_problems(caught)]


def _bare_table(table: AnnData) -> Iterator[Fact | Problem]:
    """Findings about a table of its own, as analyses and `--out` of the commands leave it."""
    yield Fact("table", "spots", table.n_obs)
    yield Fact("table", "slots in .obsm", listed(table.obsm).replace("'", ""))
    subject = Subject(SpatialData(), table, _section.regions_of(table)[0])
    for rule in (_check_table.genes,) if table.isbacked else (_check_table.genes, _check_table.counts):
        yield from _findings(rule, subject)
    spatial = table.uns.get("spatial")
    if isinstance(spatial, Mapping) and spatial:
        yield Fact("table", "pictures in .uns['spatial']", listed(spatial).replace("'", ""))
    lacks = "" if Keys.SPATIAL in table.obsm else (
        " First add the centres of the spots in pixels of the picture: `adata.obsm['spatial']`."
    )  # fmt: skip
    yield Problem(
        "warning",
        f"This is a table without a picture. {_section.ADD_PICTURE}{lacks} `sl.io.check(adata, image=..., mpp=...)` "
        "says beforehand what would go wrong. Without one it goes on with what it holds: `sl.tl.pathways`, "
        "`sl.tl.build_index` and `sl.tl.retrieve` take it, as do `sealst pathways`, `index` and `retrieve`; crops, "
        "training, embedding and prediction need the picture.",
    )


def _findings(rule: Callable[[Any], Iterator[Fact | Problem]], about: Any) -> Iterator[Fact | Problem]:
    """Findings of a rule; what it raises is a finding, too."""
    try:
        yield from rule(about)
    except SealstError as error:
        yield Problem("error", str(error))
    except Exception as error:  # noqa: BLE001
        yield Problem("error", f"{rule.__name__} could not be checked: {_message(error)}")


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, SealstError) else f"{type(error).__name__}: {error}"
