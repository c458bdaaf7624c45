"""The README of a saved model, written from the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sealst.models._seal import SealModel


def model_card(model: SealModel) -> str:
    """Model card in Markdown."""
    spec, training = model.encoder.spec, model.provenance
    weights = f"`{spec.key}`" if spec.pretrained else f"`{spec.key}` with **random weights** (seed {spec.seed})"
    lines = [
        "# SEAL model",
        "",
        f"Image encoder {weights}, aligned with spatial gene expression (SEAL, arXiv 2602.14177).",
        "",
        "| | |",
        "|---|---|",
        f"| Base encoder | {weights}, licence: {spec.licence} |",
        f"| Embedding | {spec.pool}, {spec.dim} values |",
        f"| Crops | {model.crop.crop_um:g} µm at {model.crop.crop_px} px |",
        f"| Adapter | {model.adapter.describe(spec.n_blocks)} |",
        f"| Genes | {len(model.panel)} (`panel.tsv`), log1p-CP10k |",
        f"| Training sections | {', '.join(training.get('sections', [])) or 'not recorded'} |",
        f"| Training patients | {', '.join(training.get('patients', [])) or 'not recorded'} |",
        f"| Spots | {training.get('n_spots', 'not recorded')} |",
        f"| Fingerprint | `{model.fingerprint}` |",
        "",
        "```python",
        "import sealst as sl",
        "",
        'model = sl.models.load("<this folder>")',
        "sl.tl.predict(sdata, model)",
        "```",
        "",
        "The licence of the base encoder applies to this model too. Base weights are stored here only when a folder",
        "`base/` exists. Research use only; not for diagnosis.",
    ]
    return "\n".join(lines) + "\n"
