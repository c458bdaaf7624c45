from __future__ import annotations

import base64
import dataclasses
import io
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

import sealst as sl
from sealst._core.report import Block, Picture, Table, render
from sealst._core.scores.reliability import above_zero
from sealst.pl._reports.evaluation_tables import held_out, other_tables, retrieval_tables, summary_tables
from sealst.pl._reports.evaluation_text import answers

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


@pytest.fixture(scope="module")
def written(evaluation, tmp_path_factory) -> Path:
    """The report on the full evaluation, written once."""
    return sl.pl.report(evaluation, tmp_path_factory.mktemp("report") / "new" / "evaluation.html")


@pytest.fixture(scope="module")
def html(written) -> str:
    return written.read_text(encoding="utf-8")


def short(table: pd.DataFrame) -> pd.DataFrame:
    """One metric of a table: what takes time are figures."""
    return table[table["metric"] == "pearson"]


class Reader(HTMLParser):
    """Headings, tables (rows of cells with their class), pictures and links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.tables: list[list[list[tuple[str, str]]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._into = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._into = tag if tag in ("h2", "td", "th") else self._into
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append(("", dict(attrs).get("class") or ""))

    def handle_endtag(self, tag):
        self._into = "" if tag == self._into else self._into

    def handle_data(self, data):
        if self._into == "h2":
            self.headings.append(data)
        elif self._into:
            text, kind = self.tables[-1][-1][-1]
            self.tables[-1][-1][-1] = (text + data, kind)

    def frame(self, i: int) -> pd.DataFrame:
        head, *rows = [[text for text, _ in row] for row in self.tables[i]]
        return pd.DataFrame(rows, columns=head)


def test_every_part_is_there_and_linked(html):
    page = Reader(html)
    assert page.headings == [
        "Summary",
        "What was compared",
        "Which genes can be believed",
        "Frozen against adapted, gene by gene",
        "Calibration",
        "Maps",
        "Search",
        "Pathways",
        "Every other metric",
        "Limits",
        "Versions",
    ]
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    ids = [a.get("id") for tag, a in page.tags if tag == "section"]
    assert links == [f"#{i}" for i in ids]
    assert "<title>Evaluation of UNI2-h</title>" in html
    assert 'Preset "cv" fits everything on the training sections alone' in html.replace("&#34;", '"')
    assert "bleep: contrastive learning alone" in html


def test_nothing_is_fetched_from_outside(html):
    sources = re.findall(r"""(?:src|href|action|poster|data)\s*=\s*["']?([^"'\s>]+)""", html)
    assert sources
    assert not [s[:60] for s in sources if not s.startswith(("#", "data:image/webp;base64,"))]
    assert not re.search(r"url\(|@import|<script|<link|<iframe", html)
    assert "default-src 'none'" in html


def test_pictures_say_what_they_show(html):
    pictures = [a for tag, a in Reader(html).tags if tag == "img"]
    # Answers, bars by section, genes, calibration, maps of three sections, search, pathways and other metrics.
    assert len(pictures) == 10
    assert all(len(a["alt"]) > 25 for a in pictures)
    assert len({a["alt"] for a in pictures}) == 10
    assert len(html) < 1_500_000


def test_summary_holds_means_and_deviations_over_folds(evaluation, html):
    page = Reader(html)
    frame = page.frame(0).set_index("method")
    own = evaluation.table.query("metric == 'pearson' and genes == 'hvg10' and section and method == 'seal head'")
    folds = own.groupby("fold")["value"].mean()
    assert frame.loc["seal head", "hvg10"] == f"{folds.mean():.3f} ± {folds.std():.3f}"
    assert list(frame.index) == [
        *("frozen + ridge", "adapted + ridge", "seal head", "seal retrieval", "st-net", "bleep"),
        *("colour + ridge", "mean"),
    ]
    # What is not defined for a method is a dash, not "nan".
    others = next(t for t in map(page.frame, range(len(page.tables))) if "Calibration slope" in t)
    assert others.set_index("method").loc["mean", "Calibration slope"] == "–"
    assert "nan" not in html.split("<section", 1)[1].replace("image/webp", "").lower().split("base64")[0]


def test_numbers_stand_right_and_words_left(html):
    head, first, *_ = Reader(html).tables[0]
    assert {kind for _, kind in head[1:]} == {kind for _, kind in first[1:]} == {"n"}
    assert first[0] == ("frozen + ridge", "")


def test_paired_difference_is_shown_where_the_table_has_it(evaluation, html, tmp_path):
    frame = Reader(html).frame(1)
    assert frame.to_dict("records") == [
        {"method": "adapted + ridge", "genes": "hvg10", "difference": "+0.080", "95 % interval": "+0.050 to +0.110"}
    ]
    assert "Paired difference" in html
    without = short(evaluation.table)
    small = dataclasses.replace(evaluation, table=without, spots={}, genes=evaluation.genes.iloc[:0])
    assert "Paired difference" not in sl.pl.report(small, tmp_path / "a.html").read_text(encoding="utf-8")


def test_reliability_is_printed_by_gene_set_and_beside_the_genes_that_are_mapped(evaluation, html):
    frame = Reader(html).frame(3).set_index("method")
    own = evaluation.genes.query("method == 'adapted + ridge'")
    by_patient = own.groupby(["patient", "section", "gene"])["pearson"].mean().groupby(["patient", "gene"]).mean()
    by_patient = by_patient.unstack("patient")
    pvalue = above_zero(by_patient.to_numpy().T)
    called = by_patient.index[stats.false_discovery_control(pvalue) < 0.05]
    assert 0 < len(called) < len(by_patient)
    assert frame.loc["adapted + ridge", "genes better than chance"] == f"{len(called)} of {len(by_patient)}"
    assert frame.loc["mean", "genes better than chance"] == f"0 of {len(by_patient)}"
    rows = evaluation.table.query(
        "metric == 'pearson' and genes == 'hvg10' and section and method == 'adapted + ridge'"
    )
    means = rows.groupby(["patient", "section"])["value"].mean().groupby("patient").mean()
    assert frame.loc["adapted + ridge", "hvg10"] == f"{means.mean():.2f} ({means.min():.2f} to {means.max():.2f})"
    assert "mean over patients, in brackets the lowest and the highest patient" in html
    said = re.search(
        r"Held-out r of adapted \+ ridge, mean over patients: ([^.]*(?:\.\d+[^.]*)+)\.", " ".join(html.split())
    )
    shown = dict(re.findall(r"(\w+) ([\d.]+) \((?:not )?better than chance\)", said.group(1)))
    assert shown == {gene: f"{by_patient.mean(axis=1)[gene]:.2f}" for gene in shown}
    assert len(shown) == 3
    assert {g for g in shown if f"{g} {shown[g]} (better" in said.group(1)} == {g for g in shown if g in called}


def test_sections_of_patients_that_were_seen_are_no_patients(evaluation):
    seen = evaluation.genes.assign(fold=evaluation.genes["section"])
    found, unit = held_out(seen)
    assert unit == "section"
    own = seen.query("method == 'bleep'").groupby(["gene", "section"])["pearson"].mean().unstack()
    pd.testing.assert_series_equal(found.loc["bleep"]["highest"], own.max(axis=1), check_names=False)


def test_search_shows_pool_and_chance(evaluation, html):
    frame = Reader(html).frame(4)
    row = frame[(frame["method"] == "adapted") & (frame["direction"] == "image → expression")].iloc[0]
    sizes = [spots.n_obs for spots in evaluation.spots.values()]
    assert row["pool"] == f"{min(sizes)} to {max(sizes)}"
    own = evaluation.table.query("metric == 'R@10' and method == 'adapted' and section")
    assert row["Recall at 10"] == f"{own['value'].mean():.3f} ({own['chance'].mean():.3f})"
    assert "expression → image" in set(frame["direction"])


def test_hits_nearby_have_a_table_of_their_own(evaluation):
    table = evaluation.table[evaluation.table["section"] != ""]
    near = table[table["metric"].isin(["R@10", "gene→image R@10"])]
    near = near.assign(metric="near " + near["metric"], value=1.0)
    *plain, apart = retrieval_tables(pd.concat([evaluation.table, near], ignore_index=True))
    assert "neighbours of the right spot counted as found" in apart.caption
    assert set(apart.frame["direction"]) == {"image → expression", "expression → image"}
    assert apart.frame["Recall at 10"].str.startswith("1.000 (").all()
    assert not any(one.frame["Recall at 10"].str.startswith("1.000").any() for one in plain)


def test_mapped_genes_are_best_median_and_worst_of_those_with_a_pattern(evaluation, html):
    genes = evaluation.genes.query("method == 'adapted + ridge'").groupby("gene")[["pearson", "moran_measured"]].mean()
    ranked = genes[genes["moran_measured"] >= genes["moran_measured"].median()].sort_values("pearson")
    best, median, worst = ranked.index[[-1, -1 - len(ranked) // 2, 0]]
    text = " ".join(html.split())
    assert re.search(rf"Best, median and worst gene .*: {best} \(r = [\d.]+\), {median} .*, {worst} \(", text)
    assert "among the 10 with a measured Moran&#39;s I of at least 0.36" in text


def test_limits_are_counted_from_the_data(evaluation, html, tmp_path):
    assert "2 patients (3 sections) were held out. That is few" in html
    assert "3 sections of 2 patients are not 3 independent observations" in html
    assert "All sections are of one organ (breast)" in html
    table = short(evaluation.table).query("section == 'B4' and seed == 0")
    alone = dataclasses.replace(
        evaluation, table=table, spots={}, genes=evaluation.genes.iloc[:0], pathways=evaluation.pathways.iloc[:0]
    )
    text = sl.pl.report(alone, tmp_path / "one.html").read_text(encoding="utf-8")
    assert "1 patient (1 section) was held out. Nothing can be said about differences between patients." in text
    assert "One seed was run" in text
    assert "maps and calibration are missing" in text
    assert "One fold, so without a spread" in text
    assert not {"Maps", "Calibration", "Pathways"} & set(Reader(text).headings)


def test_maps_on_the_he_of_given_sections(toy_evaluation, tmp_path):
    result, sdata = toy_evaluation
    result = dataclasses.replace(result, genes=result.genes.iloc[:0], table=short(result.table))
    path = sl.pl.report(result, tmp_path / "x.html", title="A & B", sections={"toy": sdata}, genes=["VIM"])
    plain = sl.pl.report(result, tmp_path / "y.html", title="A & B", genes=["VIM"])
    html, white = (p.read_text(encoding="utf-8") for p in (path, plain))
    assert "<h1>A &amp; B</h1>" in html
    assert "Maps of &#39;VIM&#39; in section toy" in html
    assert Reader(html).headings == Reader(white).headings
    assert html != white
    with pytest.raises(sl.MissingKeyError, match="`sections`: 'D1' not found; found: 'toy'"):
        sl.pl.report(result, path, sections={"D1": sdata})
    with pytest.raises(sl.MissingKeyError, match="'NOPE' not found in the evaluated genes"):
        sl.pl.report(result, path, genes=["NOPE"])
    # What failed left the old file as it was, and nothing beside it.
    assert path.read_text(encoding="utf-8") == html
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.html", "y.html"]


def test_what_is_no_report_is_refused(evaluation, tmp_path):
    with pytest.raises(sl.DataError, match="`path` must end in '.html', found '.*report.pdf'"):
        sl.pl.report(evaluation, tmp_path / "report.pdf")
    with pytest.raises(TypeError, match="Expected an Evaluation, .* found DataFrame"):
        sl.pl.report(evaluation.table, tmp_path / "report.html")
    empty = dataclasses.replace(evaluation, table=evaluation.table.iloc[:0])
    with pytest.raises(sl.DataError, match="has no results"):
        sl.pl.report(empty, tmp_path / "report.html")


def test_text_from_the_data_cannot_become_markup():
    frame = pd.DataFrame({"<b>a": ["<script>"], "n": ["−1.0 ± 0.2"]})
    block = Block("<i>", ["<u>"], tables=[Table(frame, '"x"')], figures=[Picture(png_of(4, 4), '" onload="x')])
    html = render("<title>", [], [block], "&")
    for wrong in ("<b>a", "<script>", "<i>", "<u>", 'onload="x"'):
        assert wrong not in html
    assert '<td class=n data-of="n">−1.0 ± 0.2</td>' in html


# -- pictures ---------------------------------------------------------------------------------------------------------
def png_of(width: int, height: int, *, noise: bool = False, dpi: int = 100) -> bytes:
    rng, out = np.random.default_rng(0), io.BytesIO()
    pixels = rng.integers(0, 256, (height, width, 3)) if noise else np.tile([[[200, 30, 90]]], (height, width, 1))
    Image.fromarray(pixels.astype(np.uint8)).save(out, "png", dpi=(dpi, dpi))
    return out.getvalue()


def shown(picture: Picture) -> Image.Image:
    kind, content = picture.data.removeprefix("data:image/").split(";base64,")
    assert kind == "webp"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_charts_stay_exact_and_tissue_gets_small():
    chart = png_of(3000, 40)
    assert shown(Picture(chart, "")).size == (3000, 40)
    assert np.array_equal(shown(Picture(chart, "")).convert("RGB"), Image.open(io.BytesIO(chart)).convert("RGB"))
    tissue = Picture(png_of(2400, 300, noise=True), "")
    # No wider than a sharp screen shows; half of what a PNG takes even for noise.
    assert shown(tissue).size == (1984, 248)
    assert len(tissue.data) < 0.75 * len(tissue.content)


def test_pictures_get_as_narrow_as_the_screen():
    html = render("t", [], [Block("h", figures=[Picture(png_of(1000, 10), "c")])], "")
    assert '<figure><img src="data:image/webp' in html
    assert "img { max-width: 100%; height: auto;" in html
    assert "min-width" not in html.split("<body>")[1]


# -- tables that fit ---------------------------------------------------------------------------------------------------
def width_of(table: list[list[tuple[str, str]]]) -> float:
    """Pixels of a table of a report (14.4 px, characters of half of that), cells in one line unless they may wrap."""
    columns = zip(*table, strict=True)
    width = 0.0
    for (head, _), *cells in columns:
        longest = max((len(text) for text, kind in cells if kind != "w"), default=28)
        width += 7.3 * max(longest, *map(len, head.split() or [""])) + 19.2
    return width


def test_no_table_is_wider_than_the_page(evaluation, html):
    tables = Reader(html).tables
    assert len(tables) > 8
    assert max(map(width_of, tables)) <= 960
    # Several seeds, methods and gene sets, and intervals.
    many = dataclasses.replace(
        evaluation,
        table=pd.concat(
            [evaluation.table, *(evaluation.table.assign(metric=f"of a long name {i}") for i in range(9))],
            ignore_index=True,
        ),
    )
    frames = [part for table in tables_of(many) for part in table.fitted()]
    assert len(frames) > len(tables_of(many)), "some are cut"
    assert max(sum(column.width for column in part.columns) for part in frames) <= 950
    assert all(part.frame.columns[0] == "method" for part in frames)


def tables_of(evaluation) -> list[Table]:
    return [*summary_tables(evaluation.table), *other_tables(evaluation.table)]


def test_a_table_that_is_too_wide_is_cut_and_loses_nothing():
    numbers = pd.DataFrame({f"metric {i}": ["0.123 ± 0.045"] * 2 for i in range(18)})
    table = Table(pd.concat([pd.DataFrame({"method": ["a", "b"], "genes": ["x", "y"]}), numbers], axis=1), "All of it.")
    parts = table.fitted()
    assert len(parts) == 3
    assert [list(part.frame.columns[:2]) for part in parts] == [["method", "genes"]] * 3
    assert [name for part in parts for name in part.frame.columns[2:]] == list(numbers)
    assert [part.caption for part in parts] == ["All of it.", "All of it, continued.", "All of it, continued."]
    (whole,) = Table(numbers.iloc[:, :3]).fitted()
    assert list(whole.frame.columns) == list(numbers)[:3]


def test_on_a_phone_a_row_is_a_list_of_named_cells(html):
    assert "@media (max-width: 40rem)" in html
    cells = [a for tag, a in Reader(html).tags if tag == "td"]
    assert len(cells) > 100
    assert all(a["data-of"] for a in cells)


def test_no_table_stands_twice_and_no_fact_is_blank(evaluation, tmp_path):
    one = evaluation.table["section"].isin(["B4", ""]) & evaluation.table["fold"].isin(["0", ""])
    facts = {
        "encoder": "SealModel 1f",
        "base": "uni2-h",
        "stopped_by": {},
        "seeds": [],
        "sealst": "0.9",
        "models": None,
    }
    facts |= {"folds": {"0": "LoRA", "1": "LoRA"}, "versions": {"sealst": "0.9"}}
    alone = dataclasses.replace(evaluation, table=evaluation.table[one], spots={}, genes=evaluation.genes.iloc[:0])
    alone = dataclasses.replace(alone, facts=facts, pathways=evaluation.pathways.iloc[:0])
    html = sl.pl.report(alone, tmp_path / "one.html").read_text(encoding="utf-8")
    page = Reader(html)
    texts = [[[text for text, _ in row] for row in table] for table in page.tables]
    assert all(texts.count(table) == 1 for table in texts)
    assert "scored together" not in html, "a fold of one section"
    recorded = next(t for t in map(page.frame, range(len(texts))) if "fact" in t).set_index("fact")["value"]
    assert recorded.to_dict() == {"encoder": "SealModel 1f", "base": "uni2-h", "folds": "LoRA (each)"}
    assert "<title>Evaluation of SealModel 1f (uni2-h)</title>" in html


# -- the first screen --------------------------------------------------------------------------------------------------
def test_it_begins_with_whether_on_whom_and_for_which_genes(evaluation, html):
    first = unescape(html.split("<nav")[0])
    assert first.index("<dl>") > first.index("<h1>")
    found = dict(answers(evaluation))
    assert re.findall("<dt>(.*?)</dt>", first) == list(found)
    means = evaluation.summary("pearson")["pearson"]["hvg10"]
    said = found["Is it better than the frozen encoder?"]
    assert f"hvg10: r {means['frozen + ridge']:.3f} → {means['adapted + ridge']:.3f}, +0.080, 95 % +0.050" in said
    assert said.startswith("It depends on the genes (hvg10: better; heg10: a higher mean, perhaps by noise).")
    rows = evaluation.table.query("metric == 'pearson' and genes == 'hvg10' and section")
    wide = rows.pivot_table(index="patient", columns="method", values="value")
    gain = wide["adapted + ridge"] - wide["frozen + ridge"]
    assert found["On whom?"] == f"Better on 2 of 2 patients (hvg10; B {gain['B']:+.3f}, C {gain['C']:+.3f})."
    genes = evaluation.genes.pivot_table(index="gene", columns="method", values="pearson")
    gain = (genes["adapted + ridge"] - genes["frozen + ridge"]).sort_values(ascending=False)
    said = found["For which genes?"]
    assert f"{(gain > 0).sum()} of 20 genes are predicted better than by frozen + ridge." in said
    assert (
        f"Most gained: {gain.index[0]} +{gain.iloc[0]:.2f} (to r {genes['adapted + ridge'][gain.index[0]]:.2f})" in said
    )
    assert "guessing reaches" in found["Does a crop find its own expression?"]


@pytest.mark.parametrize(
    ("ends", "word"),
    [
        ((0.01, 0.03), "Yes."),
        ((-0.03, -0.01), "No, it is worse."),
        ((-0.01, 0.03), "No difference that these sections tell from noise."),
    ],
)
def test_the_verdict_is_that_of_the_interval(evaluation, ends, word):
    table = evaluation.table[evaluation.table["metric"] == "pearson"]
    row = {"fold": "", "seed": 0, "section": "", "patient": "", "metric": "pearson_difference", "value": sum(ends) / 2}
    rows = [
        row | {"method": "adapted + ridge", "genes": genes, "low": ends[0], "high": ends[1]}
        for genes in ("hvg10", "heg10")
    ]
    told = dataclasses.replace(evaluation, table=pd.concat([table, pd.DataFrame(rows)], ignore_index=True))
    assert answers(told)[0][1].startswith(f"{word} adapted + ridge against frozen + ridge")


def test_one_patient_tells_no_gene_from_chance(evaluation, tmp_path):
    table, genes = (frame[frame["patient"] == "B"] for frame in (evaluation.table, evaluation.genes))
    table = table[table["metric"] == "pearson"]
    one = dataclasses.replace(evaluation, table=table, genes=genes, spots={}, pathways=evaluation.pathways.iloc[:0])
    html = sl.pl.report(one, tmp_path / "one.html").read_text(encoding="utf-8")
    assert "One patient was held out, which does not tell genes from chance." in html
    assert "etter than chance" not in html
    assert dict(answers(one))["On whom?"].startswith("Better on 1 of 1 patient (hvg10; B +")


def test_of_an_encoder_alone_it_says_what_it_reaches(evaluation):
    table = evaluation.table[evaluation.table["method"].isin(["frozen + ridge", "colour + ridge", "mean"])]
    ((question, said),) = answers(dataclasses.replace(evaluation, table=table[table["metric"] == "pearson"]))
    assert question == "What does it reach?"
    assert said.startswith("Nothing was trained. Mean Pearson r: frozen + ridge 0.")


# -- in a browser -----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"NO BROWSER: the report was NOT opened in one. Install one of {', '.join(BROWSERS)}.")
    return found


def open_page(browser: str, page: Path, profile: Path) -> tuple[str, str]:
    """What a headless browser made of a page, and what it logged."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--dump-dom"]
    options += [f"--user-data-dir={profile}", "--disable-background-networking", "--no-first-run"]
    command = [browser, *options, "--window-size=1200,900", "--virtual-time-budget=5000", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


def test_a_browser_opens_it_without_errors_and_a_phone_needs_no_sideways_scrolling(browser, written, html, tmp_path):
    # The page as it is, in frames as wide as a phone and a desk; a script in them measures.
    measure = """<script>addEventListener("load", () => {
      const page = document.documentElement, broken = [...document.images].filter(i => !i.naturalWidth).length;
      const loaded = performance.getEntriesByType("resource").filter(r => !r.name.startsWith("data:")).length;
      parent.postMessage([innerWidth, page.scrollWidth, document.images.length, broken, loaded].join(" "), "*");
    })</script></body>"""
    inner, outer = tmp_path / "inner.html", tmp_path / "outer.html"
    inner.write_text(POLICY.sub("", html).replace("</body>", measure), encoding="utf-8")
    frames = "".join(f'<iframe src="inner.html" width="{w}" height="800"></iframe>' for w in (390, 1200))
    listen = 'addEventListener("message", e => document.body.append(` [measured ${e.data}]`))'
    outer.write_text(f"<!doctype html><body><script>{listen}</script>{frames}</body>", encoding="utf-8")
    dom, _ = open_page(browser, outer, tmp_path / "profile")
    found = sorted([int(v) for v in one.split()] for one in re.findall(r"\[measured ([\d ]+)\]", dom))
    assert [row[0] for row in found] == [390, 1200], dom[-500:]
    for inner_width, scroll_width, n_pictures, n_broken, n_loaded in found:
        assert scroll_width <= inner_width
        assert (n_pictures, n_broken, n_loaded) == (10, 0, 0)

    dom, log = open_page(browser, written, tmp_path / "profile")
    assert "What was compared" in dom
    # Refusals of the page's policy are logged here too.
    assert not [line for line in log.splitlines() if "CONSOLE" in line]
