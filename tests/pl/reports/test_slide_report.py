from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from html import unescape

import pandas as pd
import pytest

import sealst as sl

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')


def headings(html: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", html)


@pytest.fixture(scope="module")
def tabled(classified):
    """The same with a floor and folds."""
    floor = classified.table.iloc[:1].assign(method="floor", value=0.5, low=0.5, high=0.5)
    return dataclasses.replace(classified, table=pd.concat([classified.table, floor], ignore_index=True))


@pytest.fixture(scope="module")
def written(tabled, tmp_path_factory):
    return sl.pl.slide_report(tabled, tmp_path_factory.mktemp("report") / "new" / "slides.html")


def test_report_of_a_classification(written):
    html = written.read_text(encoding="utf-8")
    assert headings(html) == ["What was compared", "Summary", "Folds", "Curves", "Calibration", "Limits", "Versions"]
    assert "<title>Slide-level prediction of grade</title>" in html
    assert "40 slides of 40 patients, a model (abmil) per fold, held out in 4 folds." in html
    assert "0.90 (0.80 to 0.97)" in html
    assert "+0.10 (−0.02 to 0.20)" in html
    assert "floor: for every slide of a fold the same answer" in html
    assert html.count("<img") == 3
    # Numbers of the first fold only.
    assert re.search(r"fold 0</th>", html)
    assert "AUROC fold by fold." in html


def test_report_counts_its_limits_and_right_and_wrong_slides(tabled, written):
    html = written.read_text(encoding="utf-8")
    own = tabled.predictions.query("method == 'X_seal'")
    low = (own["truth"] == "low").sum()
    assert "grade: patients by class" in html
    assert "The smallest class is small." in html
    assert "40 patients are few: expect intervals to be wide." in html
    cells = re.search(r'<th scope="row">low</th>\s*<td class=n [^>]*>(\d+)</td><td class=n [^>]*>(\d+)</td>', html)
    assert [int(v) for v in cells.groups()] == [
        int(((own["truth"] == "low") & (own["prediction"] == name)).sum()) for name in ("low", "high")
    ]
    assert sum(int(v) for v in cells.groups()) == low


def test_report_of_other_tasks_and_with_attention(regressed, survived, filled, tmp_path):
    pytest.importorskip("sksurv")
    table = filled.tables["table"]
    table.obs["seal_attention"] = 1 / 36
    path = sl.pl.slide_report(regressed, tmp_path / "a.html", title="A & B", slides={"toy": filled})
    html = path.read_text(encoding="utf-8")
    assert "<h1>A &amp; B</h1>" in html
    assert {"Predicted and measured", "Where the model looked"} <= set(headings(html))
    assert "Attention map of slide toy." in html
    html = sl.pl.slide_report(survived, path, time_label="months").read_text(encoding="utf-8")
    assert "Survival" in headings(html)
    assert "Risks of different folds come from different models" in html
    assert re.search(r"death: \d+ patients of 40 with an event\.", html)


@pytest.mark.filterwarnings("error::sealst.SealstWarning")
@pytest.mark.parametrize(("kept", "pictures"), [(["low", "high"], 3), (["high"], 1)])
def test_report_of_slides_that_lack_a_class(classified, tmp_path, kept, pictures):
    frame = classified.predictions.assign(p_none=0.0)
    frame = frame[frame["truth"].isin(kept)]
    facts = classified.facts | {"classes": {"grade": ["low", "high", "none"]}}
    lacking = dataclasses.replace(classified, predictions=frame, facts=facts)
    html = sl.pl.slide_report(lacking, tmp_path / "a.html").read_text(encoding="utf-8")
    assert "are not 'none': no curve." in unescape(html)
    assert html.count("<img") == pictures


def test_what_fails_leaves_the_old_file(regressed, filled, tmp_path):
    path = tmp_path / "a.html"
    path.write_text("old")
    with pytest.raises(sl.OrderError, match="'seal_attention' not found"):
        sl.pl.slide_report(regressed, path, slides={"toy": filled})
    with pytest.raises(sl.DataError, match="`path` must end in '.html', found '.*a.pdf'"):
        sl.pl.slide_report(regressed, tmp_path / "a.pdf")
    with pytest.raises(TypeError, match="Expected a SlideEvaluation"):
        sl.pl.slide_report(regressed.table, path)
    with pytest.raises(sl.DataError, match="has no results"):
        sl.pl.slide_report(dataclasses.replace(regressed, table=regressed.table.iloc[:0]), path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.html"]


def test_a_browser_opens_it_without_errors_and_a_phone_needs_no_sideways_scrolling(written, tmp_path):
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"NO BROWSER: the report was NOT opened in one. Install one of {', '.join(BROWSERS)}.")
    measure = """<script>addEventListener("load", () => {
      const page = document.documentElement, broken = [...document.images].filter(i => !i.naturalWidth).length;
      parent.postMessage([innerWidth, page.scrollWidth, document.images.length, broken].join(" "), "*");
    })</script></body>"""
    inner, outer = tmp_path / "inner.html", tmp_path / "outer.html"
    html = written.read_text(encoding="utf-8")
    inner.write_text(POLICY.sub("", html).replace("</body>", measure), encoding="utf-8")
    frames = "".join(f'<iframe src="inner.html" width="{w}" height="800"></iframe>' for w in (390, 1200))
    listen = 'addEventListener("message", e => document.body.append(` [measured ${e.data}]`))'
    outer.write_text(f"<!doctype html><body><script>{listen}</script>{frames}</body>", encoding="utf-8")
    dom, _ = opened(browser, outer, tmp_path / "profile")
    found = sorted([int(v) for v in one.split()] for one in re.findall(r"\[measured ([\d ]+)\]", dom))
    assert [row[0] for row in found] == [390, 1200], dom[-500:]
    assert all(width <= inner and (n, broken) == (3, 0) for inner, width, n, broken in found)
    dom, log = opened(browser, written, tmp_path / "profile")
    assert "What was compared" in dom
    # Refusals of the page's policy are logged here too.
    assert not [line for line in log.splitlines() if "CONSOLE" in line]


def opened(browser, page, profile) -> tuple[str, str]:
    """What a headless browser made of a page, and what it logged."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--dump-dom"]
    options += [f"--user-data-dir={profile}", "--disable-background-networking", "--no-first-run"]
    command = [browser, *options, "--window-size=1200,900", "--virtual-time-budget=5000", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr
