"""One name for one donor of HEST-1k, whatever title a sample stands under."""

from __future__ import annotations

import pytest

from sealst.io._hest.donors import donor_of

PAGE = {"study_link": "https://www.10xgenomics.com/datasets/x"}


def facts(title: str, patient: object = "Patient 2", **more: object) -> dict[str, object]:
    return {"dataset_title": title, "patient": patient, "organ": "Breast"} | more


PRE = facts("FFPE Human Breast with Pre-designed Panel", "patient 2")
ADDED = facts("FFPE Human Breast with Custom Add-on Panel", "Patient2")
ENTIRE = facts("FFPE Human Breast using the Entire Sample Area", "patient 1")


def test_breast_runs_of_10x_number_donors_across_titles():
    assert donor_of("TENX95", PRE) == donor_of("TENX97", ADDED) == "10x Genomics, breast: patient2"
    assert donor_of("TENX98", ENTIRE) == donor_of("TENX99", ENTIRE) != donor_of("TENX95", PRE)
    # Samples that no table names, of the same pages.
    assert donor_of("TENX901", PRE | PAGE) == donor_of("TENX902", ADDED) == donor_of("TENX95", PRE)


def test_numbers_of_other_organs_and_of_studies_stay_apart():
    breast = donor_of("TENX901", PRE)
    assert donor_of("TENX902", PRE | {"organ": "Lung"}) != breast
    study = facts("Biomarker Quantification in Human Breast", study_link="https://www.biorxiv.org/content/1")
    shown = study | {"download_page_link1": "https://www.10xgenomics.com/datasets/y"}
    assert donor_of("TENX191", shown) == "Biomarker Quantification in Human Breast: patient2"
    assert donor_of("NCBI785", PRE) == "FFPE Human Breast with Pre-designed Panel: patient2"


def test_one_section_under_two_ids_is_one_donor_whatever_its_metadata_say():
    colon = {"organ": "Bowel"}
    study = facts("Characterization of immune cell populations", "patient 1", **colon)
    assert donor_of("TENX128", facts("Visium HD, Human Colon Cancer", None, **colon)) == donor_of("TENX155", study)
    # One release calls the donors of this study all patient 1.
    assert len({donor_of(name, study) for name in ("TENX153", "TENX154", "TENX155", "TENX156")}) == 4
    assert donor_of("NCBI714", facts("An atlas", "Patient 23")) == donor_of("NCBI599", facts("Cross-talk", "Patient 1"))


def test_the_other_arm_of_a_study_knows_its_donors():
    title = donor_of("TENX155", {}).rpartition(":")[0]
    assert donor_of("TENX148", facts(title, "Patient 2", study_link="https://doi.org/1")) == donor_of("TENX155", {})


@pytest.mark.parametrize("patient", ["Patient 2", "patient2", " patient  2", 2, 2.0, "2", "2.0"])
def test_spellings_of_a_number(patient):
    assert donor_of("NCBI1", facts("A study", patient)) == "A study: patient2"


def test_unnamed_donors_of_a_title_are_one_person():
    unnamed = {k: v for k, v in facts("Human Breast Cancer").items() if k != "patient"}
    assert donor_of("TENX901", unnamed | PAGE) == "Human Breast Cancer: unknownpatient"
    assert donor_of("TENX901", {}) is None
