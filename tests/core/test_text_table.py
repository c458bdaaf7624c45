"""What separates the columns of a text file is found; a decimal comma is none."""

from __future__ import annotations

import gzip

import pandas as pd
import pytest

from sealst._text_table import read_text_table, separator_of

FRAME = pd.DataFrame({"slide": ["007", "b c"], "age": [63.5, 70.0], "n": [1, 2]})


@pytest.mark.parametrize("sign", [",", ";", "\t"])
@pytest.mark.parametrize("ending", ["csv", "tsv", "txt", "csv.gz"])
def test_the_separator_is_found_whatever_the_name_says(tmp_path, sign, ending):
    path = tmp_path / f"table.{ending}"
    text = FRAME.to_csv(sep=sign, index=False).encode("utf-8-sig")
    path.write_bytes(gzip.compress(text) if ending.endswith("gz") else text)
    pd.testing.assert_frame_equal(read_text_table(path, dtype={"slide": str}), FRAME)


@pytest.mark.parametrize("sign", [";", "\t"])
def test_decimal_commas_are_decimals(tmp_path, sign):
    path = tmp_path / "table.csv"
    path.write_text(FRAME.to_csv(sep=sign, index=False, decimal=","))
    pd.testing.assert_frame_equal(read_text_table(path, dtype={"slide": str}), FRAME)


@pytest.mark.parametrize(
    ("lines", "sign"),
    [
        (["a;b", "1,5;2,5"], ";"),
        (["a;b, in years", "x;1,5", "y;2"], ";"),
        (["a,b;c", "1,2", "3,4"], ","),
        (['a,"b;c;d"', "1,2"], ","),
        (["", "a\tb,c", "1\t2"], "\t"),
        (["path"], "\t"),
        ([], "\t"),
    ],
)
def test_signs_inside_names_and_numbers_are_no_separators(lines, sign):
    assert separator_of(lines) == sign


def test_a_file_of_one_column_stays_one_column(tmp_path):
    (tmp_path / "one.csv").write_text("age\n63,5\n70,25\n")
    frame = read_text_table(tmp_path / "one.csv")
    assert list(frame.columns) == ["age"]
    assert frame["age"].tolist() == [63.5, 70.25]
    # Thousands and decimals are not told apart where points are decimals.
    (tmp_path / "both.csv").write_text("a;b\n1.5;2\n1,234;3\n")
    assert read_text_table(tmp_path / "both.csv")["a"].tolist() == ["1.5", "1,234"]
