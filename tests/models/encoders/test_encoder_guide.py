"""The table in the guide is that of the code."""

from __future__ import annotations

from pathlib import Path

import sealst as sl

PAGE = Path(__file__).resolve().parents[3] / "docs" / "guide" / "encoders.md"


def rows() -> list[str]:
    """Lines of the table, as `list_encoders` has them."""
    words = {True: "yes", False: "no", None: "see licence"}
    return [
        f"| `{key}` | {row.dim} | {row.input_px} | {row.native_mpp:g} | {row.pool} | {row.precision} | {row.licence} | "
        f"{words[row.gated]} | {words[row.commercial]} | {row.n_params / 1e6:.1f} M | {row.citation} |"
        for key, row in sl.models.list_encoders().iterrows()
    ]


def test_table_in_the_guide_is_true():
    text = PAGE.read_text(encoding="utf-8")
    lines = text.partition("## Pathology encoders")[2].partition("\n## ")[0].splitlines()
    assert [line for line in lines if line.startswith("| `")] == rows()
