"""The README of a saved or exported model, written from the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealst.models._snippets import ADAPTER_SNIPPET, SEAL_SNIPPET, timm_snippet

if TYPE_CHECKING:
    import pandas as pd

    from sealst.models._encoders.spec import EncoderSpec
    from sealst.models._seal.net import SealModel

LOCAL = "local-dir:"
#: licences that the model hub knows by name
_KNOWN_LICENCES = ("apache-2.0", "mit", "cc-by-nc-nd-4.0", "cc-by-nc-4.0", "cc-by-4.0")


def model_card(model: SealModel) -> str:
    """Card of a model folder."""
    lead = f"Image encoder {_weights(model)}, aligned with spatial gene expression (SEAL, arXiv 2602.14177)."
    stored = "Base weights are stored here only when a folder `base/` exists."
    return _join(
        _front_matter(model, "sealst"), "# SEAL model", lead, _facts(model), _training(model), _code(SEAL_SNIPPET),
        _terms(model, stored),
    )  # fmt: skip


def timm_card(model: SealModel, *, difference: float, evaluation: pd.DataFrame | None) -> str:
    """Card of an exported timm folder."""
    spec = model.encoder.spec
    lead = (
        f"{_weights(model)}, aligned with spatial gene expression (SEAL, arXiv 2602.14177), as a plain timm model. It "
        f"takes the place of the encoder it came from: the same input, the same {spec.dim} values."
    )
    check = f"Compared with the model after writing: largest relative difference {difference:.1e}."
    stored = "The adapter is merged into the weights here."
    if spec.derivatives is False:
        stored += " **That licence does not allow derivatives to be passed on; this folder is one.**"
    return _join(
        _front_matter(model, "timm"), "# SEAL image encoder", lead, _facts(model), _training(model),
        _evaluation(evaluation), "## Use", _code(timm_snippet(model.encoder, model.crop.crop_px)), check,
        _terms(model, stored),
    )  # fmt: skip


def adapter_card(model: SealModel, *, evaluation: pd.DataFrame | None) -> str:
    """Card of an adapter alone."""
    spec = model.encoder.spec
    lead = f"Adapter for {_weights(model)}, from aligning it with spatial gene expression (SEAL, arXiv 2602.14177)."
    key = f"{LOCAL}<folder of the base encoder>" if spec.key.startswith(LOCAL) else spec.key
    page = f"; their page is {spec.hf_id}" if spec.hf_id else ""
    note = (
        "`base.json` holds the sha256 of the weights that the adapter was trained on, and how they are built. The "
        f"base's own weights are not stored here{page}."
    )
    return _join(
        _front_matter(model, "peft"), "# SEAL adapter", lead, _facts(model), _training(model), _evaluation(evaluation),
        "## Use", _code(ADAPTER_SNIPPET.format(key=key, pool=spec.pool)), note, _terms(model, ""),
    )  # fmt: skip


def _join(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _code(snippet: str) -> str:
    return f"```python\n{snippet.strip()}\n```"


def public_name(spec: EncoderSpec) -> str:
    """The encoder's name; where a folder lay on the machine of the training is nobody's business."""
    return Path(spec.key.removeprefix(LOCAL)).name if spec.key.startswith(LOCAL) else spec.key


def _weights(model: SealModel) -> str:
    spec = model.encoder.spec
    name = public_name(spec)
    return f"`{name}`" if spec.pretrained else f"`{name}` with **random weights** (seed {spec.seed})"


def _front_matter(model: SealModel, library: str) -> str:
    spec = model.encoder.spec
    licence = spec.licence.lower()
    lines = ["---", f"library_name: {library}"]
    known = licence in _KNOWN_LICENCES
    lines += [f"license: {licence}"] if known else ["license: other", f"license_name: {licence.replace(' ', '-')}"]
    lines += [f"base_model: {spec.hf_id}"] if spec.hf_id else []
    lines += ["tags:", "- pathology", "- spatial-transcriptomics", "- image-feature-extraction", "---"]
    return "\n".join(lines)


def _facts(model: SealModel) -> str:
    spec, training = model.encoder.spec, model.provenance
    unknown = training.get("note", "not recorded")
    rows = {
        "Base encoder": f"{_weights(model)}, licence: {spec.licence}",
        "Embedding": f"{spec.pool}, {spec.dim} values",
        "Crops": f"{model.crop.crop_um:g} µm at {model.crop.crop_px} px",
        "Adapter": model.adapter.describe(spec.n_blocks),
        "Genes in training": f"{len(model.panel)}, log1p-CP10k",
        "Training sections": ", ".join(training.get("sections", [])) or unknown,
        "Training patients": ", ".join(training.get("patients", [])) or unknown,
        "Spots": training.get("n_spots", "not recorded"),
        "Base citation": spec.citation or "not recorded",
        "Published by its authors as": training.get("source", ""),
        "Fingerprint": f"`{model.fingerprint}`",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items() if value != "")])


def _training(model: SealModel) -> str:
    """Loss and held-out scores after the last epoch."""
    if not len(model.history):
        return ""
    last: dict[str, Any] = model.history.iloc[-1].dropna().to_dict()
    held = {"val_pearson": "held-out gene Pearson", "val_recall@10": "held-out recall at 10"}
    found = [f"{text} {last[name]:.3f}" for name, text in ({"train_loss": "loss"} | held).items() if name in last]
    return f"After the last epoch: {', '.join(found)}." if found else ""


#: of the many that an evaluation has
_CARD_METRICS = ("pearson", "spearman", "R@10", "median_rank")


def _evaluation(table: pd.DataFrame | None) -> str:
    """Means over sections of what `sealst.tl.evaluate` measured."""
    if table is None:
        return ""
    if "section" in table and (table["section"] != "").any():
        table = table[table["section"] != ""]
    table = table[table["metric"].isin(_CARD_METRICS)]
    wide = table.pivot_table(index="method", columns=["metric", "genes"], values="value", dropna=False, sort=False)
    wide = wide.dropna(axis="columns", how="all")
    names = [" ".join(str(part) for part in column if part) for column in wide.columns]
    rows = [f"| {method} | {' | '.join(_number(v) for v in values)} |" for method, *values in wide.itertuples()]
    sections = ", ".join(map(str, table["section"].unique()))
    head = [f"| method | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    return "\n".join([f"## Evaluation on {sections}", "", *head, *rows])


def _number(value: float) -> str:
    return "" if value != value else f"{value:.3f}"


def _terms(model: SealModel, stored: str) -> str:
    licence = f"The licence of the base encoder ({model.encoder.spec.licence}) applies to this model too."
    return " ".join(filter(None, [licence, stored, "Research use only; not for diagnosis."]))
