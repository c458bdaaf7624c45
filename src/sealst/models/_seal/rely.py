"""Reliability from an evaluation: that it is of this model, and what it says."""

from __future__ import annotations

from typing import Any

import numpy as np

from sealst._core.scores.reliability import SectionScores, score_section
from sealst._core.space.views import N_SYMMETRIES
from sealst._errors import DataError
from sealst._evaluation import Evaluation
from sealst._validate import listed
from sealst.models._seal.net import SealNet
from sealst.models._seal.reliability import Reliability, reliability_of

#: what `tl.predict` writes, by whether readouts were fitted behind the encoder
_METHODS = {True: "seal prediction", False: "seal head"}


def reliability_by(model: SealNet, evaluation: Evaluation) -> Reliability:
    """What an evaluation says of a model's genes; see `SealModel.rely_on`."""
    if not isinstance(evaluation, Evaluation):
        raise TypeError(f"`evaluation` must be what `sl.tl.evaluate` returns, found {type(evaluation).__name__}.")
    method = _METHODS[bool(model.fitted)]
    _check_made_alike(model, evaluation)
    patients = _patients(evaluation)
    _check_sections(model, evaluation, patients)
    genes = [gene for gene in model.panel.genes if any(gene in maps.var_names for maps in evaluation.spots.values())]
    if not genes:
        raise DataError(
            "The evaluation scored no gene of the model's panel; pass `genes={'panel': model.panel.genes}`."
        )
    scores = [_scores(name, patients[name], maps, method, genes) for name, maps in evaluation.spots.items()]
    return reliability_of(model.fingerprint, scores, genes, by=_held_out(evaluation))


def _check_made_alike(model: SealNet, evaluation: Evaluation) -> None:
    facts, here = evaluation.facts, model.origin
    if facts.get("preset") == "hest" or facts.get("views") != N_SYMMETRIES:
        raise DataError(
            f"The evaluation has the preset {facts.get('preset')!r}, which sees crops otherwise than `sl.tl.predict` "
            "does. Use `preset='cv'`."
        )
    made = facts.get("models") or {}
    if not made:
        raise DataError("The evaluation is of an encoder alone; evaluate this model, or the recipe that it came from.")
    if other := sorted({str(one) for one in made.values()} - {here}):
        raise DataError(f"The evaluation is of models of another making: {other[0]}; this one is of {here}.")
    if not facts.get("seeds") and facts.get("encoder") != f"SealModel {model.fingerprint}":
        raise DataError(
            f"The evaluation is of {facts.get('encoder')!r}, this model is 'SealModel {model.fingerprint}'."
        )
    if not evaluation.spots:
        raise DataError(
            "The evaluation kept no predictions of single spots, as there were too many; score fewer genes."
        )


def _patients(evaluation: Evaluation) -> dict[str, str]:
    table = evaluation.table[evaluation.table["section"] != ""]
    return dict(zip(table["section"].astype(str), table["patient"].astype(str), strict=True))


def _check_sections(model: SealNet, evaluation: Evaluation, patients: dict[str, str]) -> None:
    """Models of folds held out what this one learned from; of the model itself the sections are others."""
    table = evaluation.table[evaluation.table["section"] != ""]
    if (cut := table.groupby("section")["fold"].nunique() > 1).any():
        raise DataError(
            f"Folds of the evaluation cut through section(s) {listed(cut.index[cut])}, so that models have seen the "
            "tissue around what they were tested on. Use `folds='patient'` (or 'section')."
        )
    held, learned = set(evaluation.spots), set(map(str, model.provenance.get("sections", ())))
    if evaluation.facts.get("seeds"):
        if held != learned:
            raise DataError(
                f"The evaluation held out section(s) {listed(sorted(held))}, but the model was trained on "
                f"{listed(sorted(learned))}. Evaluate the same recipe on the sections of the training."
            )
    elif both := sorted({patients[name] for name in held} & set(map(str, model.provenance.get("patients", ())))):
        raise DataError(f"The evaluation tests on patient(s) {listed(both)}, whom the model was trained on.")


def _held_out(evaluation: Evaluation) -> str:
    """Whether a fold held out all sections of its patients."""
    table = evaluation.table[evaluation.table["section"] != ""]
    return "patient" if (table.groupby("patient")["fold"].nunique() == 1).all() else "section"


def _scores(section: str, patient: str, maps: Any, method: str, genes: list[str]) -> SectionScores:
    if method not in maps.layers:
        methods = listed(filter(None, maps.layers))  # anndata 0.13 lists `.X` among them, as None
        raise DataError(f"The evaluation has no {method!r} of section {section!r}; its methods: {methods}.")
    columns = maps.var_names.get_indexer(genes)
    known = columns >= 0
    values = [np.asarray(x)[:, np.maximum(columns, 0)] for x in (maps.layers[method], maps.X)]
    return score_section(*values, section=section, patient=patient, known=known)
