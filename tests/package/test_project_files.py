"""README, changelog and requirements say what is so."""

from __future__ import annotations

import re

from package_source import ROOT, requirements

import sealst as sl


def readme_block(marker: str) -> str:
    """Text of the first fenced block after a comment in the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    match = re.search(rf"<!-- {marker} -->\s*```\w*\n(.*?)```", text, flags=re.S)
    assert match, f"the README has no `<!-- {marker} -->` followed by a fenced block"
    return match.group(1).strip()


def test_readme_demo_command() -> None:
    assert readme_block("demo-command") == "pip install . && sealst demo"


def test_readme_test_command_is_what_ci_runs() -> None:
    assert readme_block("test-command") == 'pip install -e ".[dev]" && pytest -n 2 --dist loadfile'
    assert "<!-- test-command -->" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_version_in_step() -> None:
    assert f"\n## [{sl.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {sl.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_lower_bounds_only() -> None:
    capped = [requirement for requirement in requirements() if re.search(r"<|==|~=|!=", requirement)]
    assert not capped, "an upper bound here breaks somebody else's environment"
