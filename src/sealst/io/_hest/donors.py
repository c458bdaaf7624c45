"""Donors of HEST-1k: who is the same person, across the titles under which its samples stand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_COLORECTAL = (
    "Characterization of immune cell populations in the tumor microenvironment of colorectal cancer using high "
    "definition spatial profiling"
)
#: donors that the metadata of some releases name otherwise, or under two titles (mahmoodlab/HEST#126, and the pages of
#: 10x Genomics and GEO that the samples come from). TENX128 is TENX155 under another title, NCBI714 is NCBI599.
_KNOWN = {
    "TENX95": "10x Genomics, breast: patient2",
    "TENX97": "10x Genomics, breast: patient2",
    "TENX98": "10x Genomics, breast: patient1",
    "TENX99": "10x Genomics, breast: patient1",
    "TENX156": f"{_COLORECTAL}: patient1",
    "TENX155": f"{_COLORECTAL}: patient2",
    "TENX128": f"{_COLORECTAL}: patient2",
    "TENX153": f"{_COLORECTAL}: patient3",
    "TENX154": f"{_COLORECTAL}: patient5",
    "NCBI599": "Indiana University, kidney: F59",
    "NCBI714": "Indiana University, kidney: F59",
}
_UNKNOWN = "unknown patient"


def donor_of(sample: str, facts: Mapping[str, Any]) -> str | None:
    """Name of a sample's donor, the same for all samples of one person; None where nothing is known of it.

    Patients are numbered within a study, and where the metadata name none the whole study counts as one. The data sets
    of 10x Genomics are no study: a number runs on from one title to the next, for an organ.
    """
    if sample in _KNOWN:
        return _KNOWN[sample]
    title = facts.get("dataset_title")
    if title is None:
        return None
    # The metadata write "Patient 1", "patient 1", "patient1" and, of one column, 1.0.
    text = re.sub(r"(\d)\.0+$", r"\1", "".join(str(facts.get("patient", _UNKNOWN)).casefold().split()))
    number = text if text.startswith(("patient", "unknown")) or not text.isdigit() else f"patient{text}"
    if _of_10x(sample, facts) and re.search(r"\d", number):
        return f"10x Genomics, {str(facts.get('organ', 'unknown organ')).strip().casefold()}: {number}"
    return f"{' '.join(str(title).split())}: {number}"


def _of_10x(sample: str, facts: Mapping[str, Any]) -> bool:
    """Whether a sample is one of the data sets that 10x Genomics shows, in place of a study's."""
    if not sample.upper().startswith("TENX"):
        return False
    links = [str(facts[name]) for name in ("study_link", "download_page_link1", "download_page_link2") if name in facts]
    if links:
        return "10xgenomics.com" in links[0]
    # Their titles name species and organ: "FFPE Human Breast with Pre-designed Panel".
    return re.search(r"\b(human|mouse)\b", str(facts.get("dataset_title", "")), re.IGNORECASE) is not None
