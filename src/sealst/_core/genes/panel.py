"""The ordered gene panel that a model keeps: names, order, statistics, and how data are aligned to it."""

from __future__ import annotations

import hashlib
import html
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from sealst._core.genes.asked import check_asked, check_named
from sealst._errors import PanelError
from sealst._files import TABLE_BYTES, read_text, write_text
from sealst._given.schema import Finite, Name, Names, Number, Positive, Stored
from sealst._logging import warn
from sealst._validate import listed, shown

#: standard deviations below this belong to a constant gene and are stored as 1, as in sklearn's StandardScaler
MIN_STD = 1e-3

_ENSEMBL_ID = re.compile(r"ENS[A-Z]*G\d{6,}")
#: columns of a panel's file
_COLUMNS = ("gene", "ensembl", "mean", "std")
#: further one, where sections measure different genes: one digit per section, 1 where it measures the gene
_MEASURED = "measured"


class Alignment(NamedTuple):
    """Where the genes of a panel stand among some names."""

    #: column of every panel gene, int64 (G,); -1 where absent
    columns: np.ndarray
    #: panel genes that are absent, in panel order
    missing: tuple[str, ...]


@dataclass(frozen=True, eq=False, repr=False)
class GenePanel:
    """Genes in the order of a model's inputs and outputs, with the statistics and normalisation they belong to.

    Genes match by upper-cased symbol, so ``Epcam`` finds ``EPCAM``. `mean` and `std` describe the training spots in
    `layer` and serve to standardise expression and to fill genes that new data lack.

    Parameters
    ----------
    genes
        Gene symbols, unique also when upper-cased.
    mean, std
        Per gene over the training spots, (genes,), in units of `layer` (log1p of counts scaled to `target_sum`);
        kept as read-only float32.
    ensembl
        Ensembl ids in the order of `genes` (``""`` where unknown), or empty.
    target_sum
        Counts per spot after library-size normalisation, before log1p.
    layer
        Layer that `mean` and `std` were taken from: ``"context"`` or ``"lognorm"``.
    species
        Species of the symbols.
    sections
        Names of the sections the panel was chosen on.
    availability
        bool (sections, genes): which of `sections` measure which gene; None where all measure all, and stored as None
        then. `mean` and `std` of a gene are over the spots of the sections that measure it.

    Raises
    ------
    PanelError
        When lengths differ, a gene is empty or occurs twice, or a statistic is not usable.

    Examples
    --------
    >>> panel = GenePanel(("EPCAM", "VIM"), mean=[1.0, 0.5], std=[0.6, 0.4])
    >>> panel.extract(np.array([[3.0, 2.0, 0.0]]), ["CD3E", "Epcam", "VIM"])
    array([[2., 0.]], dtype=float32)
    """

    genes: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    ensembl: tuple[str, ...] = ()
    target_sum: float = 1e4
    layer: str = "context"
    species: str = "human"
    sections: tuple[str, ...] = ()
    availability: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("genes", "ensembl", "sections"):
            object.__setattr__(self, name, tuple(str(v) for v in getattr(self, name)))
        if not self.genes:
            raise PanelError("A gene panel needs at least one gene, found none.")
        seen: dict[str, str] = {}
        for i, gene in enumerate(self.genes):
            if not gene.strip() or gene != gene.strip() or re.search(r"[\t\r\n]", gene):
                raise PanelError(f"Gene {i + 1} of the panel, {gene!r}, is empty or holds white space around it.")
            if gene.upper() in seen:
                raise PanelError(
                    f"Gene {gene!r} occurs twice in the panel (also as {seen[gene.upper()]!r}); genes must be unique."
                )
            seen[gene.upper()] = gene
        if self.ensembl and len(self.ensembl) != len(self.genes):
            raise PanelError(f"`ensembl` has {len(self.ensembl)} ids, expected none or one per gene ({len(self)}).")
        for name in ("mean", "std"):
            array = np.array(getattr(self, name), dtype=np.float32)
            if array.shape != (len(self),):
                raise PanelError(f"`{name}` must have one value per gene, ({len(self)},), found shape {array.shape}.")
            if not np.isfinite(array).all():
                raise PanelError(f"`{name}` holds NaN or infinite values in {(~np.isfinite(array)).sum()} genes.")
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        if (self.std <= 0).any():
            gene = self.genes[int(np.argmax(self.std <= 0))]
            raise PanelError(f"`std` must be above 0 for every gene; it is not for {gene!r}. Use 1 for constant genes.")
        if not np.isfinite(self.target_sum) or self.target_sum <= 0:
            raise PanelError(f"`target_sum` must be a positive number, found {self.target_sum!r}.")
        object.__setattr__(self, "target_sum", float(self.target_sum))
        if self.availability is not None:
            shape, table = (len(self.sections), len(self)), np.array(self.availability, dtype=bool)
            if table.shape != shape:
                raise PanelError(f"`availability` must be (sections, genes), {shape}, found {table.shape}.")
            if absent := [g for g, some in zip(self.genes, np.atleast_1d(table.any(axis=0)), strict=True) if not some]:
                raise PanelError(f"{len(absent)} gene(s) are measured in none of the sections: {listed(absent)}.")
            table.flags.writeable = False
            object.__setattr__(self, "availability", None if table.all() else table)

    def __len__(self) -> int:
        return len(self.genes)

    def __repr__(self) -> str:
        shown = ", ".join(self.genes[:4]) + (", …" if len(self) > 4 else "")
        return (
            f"GenePanel({len(self)} genes: {shown}; layer={self.layer!r}, target_sum={self.target_sum:g}, "
            f"species={self.species!r}, {len(self.sections)} sections)"
        )

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{i + 1}</td><td>{html.escape(g)}</td><td>{m:.3f}</td><td>{s:.3f}</td></tr>"
            for i, (g, m, s) in enumerate(zip(self.genes[:5], self.mean, self.std, strict=False))
        )
        head = "<tr><th></th><th>gene</th><th>mean</th><th>std</th></tr>"
        return f"<p>{html.escape(repr(self))}</p><table>{head}{rows}</table>"

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of genes, mean and std; equal for equal panels."""
        digest = hashlib.sha256("\n".join(self.genes).encode())
        for values in (self.mean, self.std):
            digest.update(values.astype("<f4").tobytes())
        return digest.hexdigest()[:16]

    def require_names(self) -> None:
        """Raise `PanelError` when it is not known which genes these are, as of a model published without its list."""
        check_named(self.genes)

    def subset(self, genes: Sequence[str]) -> GenePanel:
        """Return the panel of these genes, in the order asked.

        Raises
        ------
        PanelError
            When a gene is not in the panel, or the panel's genes have no names.
        """
        self.require_names()
        wanted = [genes] if isinstance(genes, str) else list(genes)
        position = {g.upper(): i for i, g in enumerate(self.genes)}
        check_asked(wanted, self.genes)
        keep = [position[str(g).strip().upper()] for g in wanted]
        return GenePanel(
            tuple(self.genes[i] for i in keep),
            self.mean[keep],
            self.std[keep],
            ensembl=tuple(self.ensembl[i] for i in keep) if self.ensembl else (),
            target_sum=self.target_sum,
            layer=self.layer,
            species=self.species,
            sections=self.sections,
            availability=None if self.availability is None else self.availability[:, keep],
        )

    def coverage(self) -> pd.DataFrame:
        """How much of the panel each section it was chosen on measures.

        Returns
        -------
        DataFrame, index the name of the section, columns ``genes`` (number measured) and ``share`` (0 to 1).

        Examples
        --------
        >>> GenePanel(("EPCAM", "VIM"), [1, 1], [1, 1], sections=("a", "b"), availability=[[1, 1], [1, 0]]).coverage()
                 genes  share
        section
        a            2    1.0
        b            1    0.5
        """
        shape = (len(self.sections), len(self))
        table = np.ones(shape, dtype=bool) if self.availability is None else self.availability
        index = pd.Index(self.sections, name="section", dtype=object)
        return pd.DataFrame({"genes": table.sum(axis=1), "share": table.mean(axis=1)}, index=index)

    def measured(self, names: Sequence[str]) -> np.ndarray:
        """Which of the panel's genes are among `names`, bool (genes,).

        Matched as in `align`, but a gene whose symbol occurs in several spellings is not known to be any of them.

        Examples
        --------
        >>> GenePanel(("EPCAM", "VIM"), [1, 1], [1, 1]).measured(["Vim", "TP53"])
        array([False,  True])
        """
        times = Counter(str(name).upper() for name in names)
        once = np.array([times[gene.upper()] == 1 for gene in self.genes], dtype=bool)
        return (self.align(names).columns >= 0) & once

    def align(self, names: Sequence[str]) -> Alignment:
        """Find the panel's genes among `names`, by upper-cased symbol.

        Where two names differ only in case, the one spelled as in the panel wins, else the first.

        Raises
        ------
        PanelError
            When a gene of the panel occurs twice, spelled alike, in `names`, or the panel's genes have no names.
        """
        self.require_names()
        exact: dict[str, int] = {}
        upper: dict[str, int] = {}
        known = {g.upper() for g in self.genes}
        for i, name in enumerate(map(str, names)):
            if name in exact and name.upper() in known:
                raise PanelError(f"Gene {name!r} occurs twice among the names; sum or drop the duplicate columns.")
            exact[name] = i
            upper.setdefault(name.upper(), i)
        columns = np.array([exact.get(g, upper.get(g.upper(), -1)) for g in self.genes], dtype=np.int64)
        return Alignment(columns, tuple(g for g, c in zip(self.genes, columns, strict=True) if c < 0))

    def extract(
        self, x: Any, names: Sequence[str], *, min_shared: float = 0.5, warn_missing: bool = True
    ) -> np.ndarray:
        """Bring an expression matrix into the order of the panel.

        Parameters
        ----------
        x
            Dense or sparse (n, len(names)), normalised as the panel says.
        names
            Names of the columns of `x`.
        min_shared
            Lowest share of the panel's genes that must be present; at least one must be, whatever the share.
        warn_missing
            Whether to warn of missing genes; training masks them (`measured`) and needs no warning.

        Returns
        -------
        float32 (n, genes), dense; a missing gene holds the panel's mean, which is 0 after standardisation.

        Raises
        ------
        PanelError
            When fewer than `min_shared` of the genes are present, or shapes do not fit.
        """
        if x.ndim != 2 or x.shape[1] != len(names):
            raise PanelError(f"`x` must be (n, {len(names)}), one column per name, found {x.shape}.")
        columns, missing = self.align(names)
        shared = len(self) - len(missing)
        if shared == 0 or shared < min_shared * len(self):
            hint = "Use data that measure these genes, or train with a panel of genes both have."
            if sum(_ENSEMBL_ID.match(str(n)) is not None for n in names) > len(names) / 2:
                hint = (
                    "The names are Ensembl ids; the panel has symbols: set `adata.var_names = "
                    "adata.var['gene_symbols']`."
                )
            raise PanelError(
                f"Only {shared} of the panel's {len(self)} genes are among the {len(names)} names; at least "
                f"{min_shared:.0%} are needed. Missing e.g. {listed(missing[:5])}; the names begin "
                f"{listed(names[:5])}. {hint}"
            )
        if missing and warn_missing:
            warn(
                f"{len(missing)} of the panel's {len(self)} genes are missing and take the panel's mean: "
                f"{listed(missing, 5)}."
            )
        present = columns >= 0
        part = x.tocsc()[:, columns[present]].toarray() if sp.issparse(x) else np.asarray(x)[:, columns[present]]
        out = np.empty((x.shape[0], len(self)), dtype=np.float32)
        out[:, ~present] = self.mean[~present]
        out[:, present] = part
        return out

    def to_tsv(self, path: str | os.PathLike[str]) -> None:
        """Write the panel as a tab-separated table.

        Lines ``# key: value`` (values as JSON) come first, then one row per gene: gene, ensembl, mean, std. Numbers are
        written in full, so `from_tsv` gives back the same float32. Where sections measure different genes, a fifth
        column, measured, has one digit per section (1 where it measures the gene). The file appears complete or not at
        all.
        """
        facts = {
            "species": self.species,
            "layer": self.layer,
            "target_sum": self.target_sum,
            "sections": list(self.sections),
            "n_genes": len(self),
            "fingerprint": self.fingerprint,
        }
        columns: list[Sequence[str]] = [
            self.genes,
            self.ensembl or ("",) * len(self),
            [repr(value) for value in self.mean.tolist()],
            [repr(value) for value in self.std.tolist()],
        ]
        names: tuple[str, ...] = _COLUMNS
        if self.availability is not None:
            names = (*_COLUMNS, _MEASURED)
            columns.append(["".join("01"[bit] for bit in gene) for gene in self.availability.T.astype(int)])
        lines = [f"# {key}: {json.dumps(value)}" for key, value in facts.items()]
        lines.append("\t".join(names))
        lines += ["\t".join(row) for row in zip(*columns, strict=True)]
        write_text(Path(path), "\n".join(lines) + "\n")

    @classmethod
    def from_tsv(cls, path: str | os.PathLike[str]) -> GenePanel:
        """Read a panel that `to_tsv` wrote; the ``#`` lines may be absent.

        Raises
        ------
        PanelError
            When the file is damaged; the text names the line and the column.
        FileNotFoundError
            When there is no such file.
        """
        path = Path(path)
        fields, fingerprint = read_panel(path)
        try:
            panel = cls(**fields)
        except PanelError as error:
            raise PanelError(f"{path}: {error}") from error
        if fingerprint not in (None, panel.fingerprint):
            raise PanelError(
                f"{path}: the genes or numbers are not those the file was written with (fingerprint "
                f"{panel.fingerprint}, expected {fingerprint}). Restore the file; a panel edited on purpose needs that "
                "line removed."
            )
        return panel


class _Facts(Stored):
    """The lines above the table of a panel's file, each a key and a JSON value."""

    species: Name = "human"
    layer: Name = "context"
    target_sum: Positive = 1e4
    sections: Names = ()
    n_genes: Number | None = None
    fingerprint: Name | None = None


class _Row(Stored):
    """A gene of a panel's file."""

    gene: Name
    ensembl: Name | None
    mean: Finite
    std: Finite


def read_panel(path: Path) -> tuple[dict[str, Any], str | None]:
    """Fields of the panel in a file, and the fingerprint it was written with."""
    lines = read_text(path, kind=PanelError, most=TABLE_BYTES).rstrip("\n").split("\n")
    start = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    facts = _Facts()
    for number, line in enumerate(lines[:start], start=1):
        key, colon, text = line.lstrip("# ").partition(":")
        if not colon or (key := key.strip()) not in _Facts.model_fields:
            continue  # a comment by a person
        try:
            stated = {key: json.loads(text)}
        except (ValueError, RecursionError) as error:
            raise PanelError(
                f"{path}, line {number}: {key!r} must be a JSON value, found {shown(text.strip())}."
            ) from error
        checked = _Facts.of(stated, where=f"{path}, line {number}", kind=PanelError)
        facts = facts.model_copy(update={key: getattr(checked, key)})
    columns = tuple(lines[start].split("\t")) if start < len(lines) else ()
    if columns not in (_COLUMNS, (*_COLUMNS, _MEASURED)):
        found = shown(lines[start]) if start < len(lines) else "the end of the file"
        raise PanelError(f"{path}, line {start + 1}: expected the columns {listed(_COLUMNS)}, found {found}.")
    rows = [line.split("\t") for line in lines[start + 1 :]]
    read = []
    for number, cells in enumerate(rows, start=start + 2):
        where = f"{path}, line {number}"
        if len(cells) != len(columns):
            raise PanelError(f"{where}: expected {len(columns)} columns, found {len(cells)}: {shown(cells)}.")
        read.append(_Row.of(dict(zip(columns, cells, strict=True)), where=where, kind=PanelError, cells=True))
    if facts.n_genes not in (None, len(rows)):
        raise PanelError(f"{path}, line {len(lines)}: the file ends after {len(rows)} of {facts.n_genes} genes.")
    sections = facts.sections
    availability = None
    if _MEASURED in columns:
        for number, (*_, cell) in enumerate(rows, start=start + 2):
            if len(cell) != len(sections) or set(cell) - {"0", "1"}:
                raise PanelError(
                    f"{path}, line {number}: column {_MEASURED!r} must have a 0 or 1 for each of the {len(sections)} "
                    f"sections, found {cell!r}."
                )
        availability = np.array([[digit == "1" for digit in row[4]] for row in rows], dtype=bool)
        availability = availability.reshape(-1, len(sections)).T
    fields = {
        "genes": tuple(row.gene for row in read),
        "mean": np.array([row.mean for row in read]),
        "std": np.array([row.std for row in read]),
        "ensembl": tuple(row.ensembl or "" for row in read) if any(row.ensembl for row in read) else (),
        "target_sum": facts.target_sum,
        "layer": facts.layer,
        "species": facts.species,
        "sections": sections,
        "availability": availability,
    }
    return fields, facts.fingerprint
