"""The command ``sealst synthetic``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sealst._files import new_folder, write_text
from sealst._logging import quiet_writing
from sealst.cli._common import Answer, SealstCommand
from sealst.cli._from_signature import options_of
from sealst.cli._options import out_option, seed_option, stated
from sealst.cli._sections import check_new

_MANIFEST = "manifest.csv"


@click.command(
    cls=SealstCommand,
    epilog="Example: `sealst synthetic --out data --n-sections 3`, then `sealst prepare data/manifest.csv --out "
    "sections`.",
)
@out_option("New folder.")
@options_of(
    "datasets.synthetic", "n_sections", "n_patients", "size_um", "mpp", "array", "pitch_um", "n_genes",
    n_sections={"default": 3},
    array={"type": click.Choice(["hex", "square"])},
)  # fmt: skip
@seed_option
def synthetic(out: Path, *, overwrite: bool, n_sections: int, **options: Any) -> Answer:
    """Draw H&E sections with spots (datasets.synthetic).

    Expression follows from the drawn tissue. For trying a pipeline offline. Writes OUT/<section>.zarr (raw, as a
    reader would give it), OUT/manifest.csv and OUT/programs.csv, the gene programs as gene sets for --net.
    """
    check_new(out, overwrite)
    from sealst import datasets

    drawn = datasets.synthetic(n_sections, **stated(**options))
    sections = drawn if isinstance(drawn, list) else [drawn]
    rows: list[dict[str, Any]] = []
    with new_folder(out, overwrite=overwrite, marker=_MANIFEST) as work:
        for sdata in sections:
            obs = sdata.tables["table"].obs
            name, patient = str(obs["section"].iloc[0]), str(obs["patient"].iloc[0])
            with quiet_writing():
                sdata.write(work / f"{name}.zarr", update_sdata_path=False)
            rows.append({"path": f"{name}.zarr", "section": name, "patient": patient, "n_obs": len(obs)})
        lines = [f"{row['path']},{row['section']},{row['patient']}" for row in rows]
        write_text(work / _MANIFEST, "\n".join(["path,section,patient", *lines]) + "\n")
        datasets.synthetic_net().to_csv(work / "programs.csv", index=False)
    facts: dict[str, Any] = {"manifest": str(out / _MANIFEST), "net": str(out / "programs.csv")}
    facts["sections"] = [row | {"path": str(out / str(row["path"]))} for row in rows]
    then = f"sealst prepare {out / _MANIFEST} --out {out.name}_prepared"
    return Answer(facts, f"{len(rows)} section(s) in {out}; next: `{then}`")
