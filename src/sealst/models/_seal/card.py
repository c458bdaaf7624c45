"""The README of a saved or exported model, written from the run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sealst.models._encoders.names import LOCAL
from sealst.models._seal.reliability import UNKNOWN

if TYPE_CHECKING:
    import pandas as pd

    from sealst.models._encoders.encoder import Encoder
    from sealst.models._encoders.spec import EncoderSpec
    from sealst.models._seal.net import SealNet

SEAL_SNIPPET = """
import sealst as sl

model = sl.models.load("<this folder>")
sl.tl.predict(sdata, model)
"""

ADAPTER_SNIPPET = """
import sealst as sl
from peft import PeftModel

# Any timm module with the same weights under timm's names will do.
base = sl.models.build_encoder({key}, pool={pool}).vit
model = PeftModel.from_pretrained(base, "<this folder>").merge_and_unload().eval()
"""

_LOAD = """
import timm
import torch

folder = "<this folder>"
model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
config = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**config, is_training=False)  # for PIL images of [PX] px

images = torch.stack([transform(picture) for picture in pictures])
with torch.inference_mode():
    out = model(images)
"""

_TOKENS = """
# timm has no such pooling: the model returns all tokens, and they are pooled here.
z = torch.cat([PARTS], dim=1)
"""

_ATTENTION = """
# timm has no such pooling: the model returns all tokens, and one learned query attends to them.
from safetensors.torch import load_file
from torch.nn.functional import layer_norm, linear, scaled_dot_product_attention

w = load_file(f"{folder}/attention_pooler.safetensors")


def layer(x, name):
    return linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def norm(x, name):
    return layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def heads(x):
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


with torch.inference_mode():
    tokens = norm(out, "ln_k")
    query = layer(norm(w["query"], "ln_q"), "q").expand(len(tokens), 1, -1)
    z = scaled_dot_product_attention(heads(query), heads(layer(tokens, "k")), heads(layer(tokens, "v")))
    z = norm(layer(z.transpose(1, 2).flatten(2), "proj"), "ln")[:, 0]
"""


def timm_snippet(encoder: Encoder, crop_px: int) -> str:
    """Code that loads an exported folder and embeds `pictures` as `z`."""
    spec, code = encoder.spec, _LOAD.replace("[PX]", str(crop_px))
    if spec.family != "vit" or spec.pool in ("cls", "mean"):
        return code.replace("out = model", "z = model")
    if not spec.pool.startswith("attn"):
        parts = {"cls": "out[:, 0]", "mean": f"out[:, {spec.n_prefix}:].mean(1)"}
        return code + _TOKENS.replace("PARTS", ", ".join(parts[name] for name in spec.pool.split("+")))
    text = '    z = z @ w["to_text"]\n' if spec.pool == "attn-proj" else ""
    return code + _ATTENTION.replace("HEADS", str(spec.pooler_args["heads"])) + text


#: licences that the model hub knows by name
_KNOWN_LICENCES = ("apache-2.0", "mit", "cc-by-nc-nd-4.0", "cc-by-nc-4.0", "cc-by-4.0")


def model_card(model: SealNet) -> str:
    """Card of a model folder."""
    lead = f"Image encoder {_weights(model)}, aligned with spatial gene expression (SEAL, arXiv 2602.14177)."
    stored = "Base weights are stored here only when a folder `base/` exists."
    return _join(
        _front_matter(model, "sealst"), "# SEAL model", lead, _facts(model), _training(model), _code(SEAL_SNIPPET),
        _terms(model, stored),
    )  # fmt: skip


def timm_card(model: SealNet, *, difference: float, evaluation: pd.DataFrame | None) -> str:
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


def adapter_card(model: SealNet, *, evaluation: pd.DataFrame | None) -> str:
    """Card of an adapter alone."""
    spec = model.encoder.spec
    lead = f"Adapter for {_weights(model)}, from aligning it with spatial gene expression (SEAL, arXiv 2602.14177)."
    key = f"{LOCAL}<folder of the base encoder>" if spec.key.startswith(LOCAL) else spec.key
    snippet = ADAPTER_SNIPPET.format(key=json.dumps(key, ensure_ascii=False), pool=json.dumps(spec.pool))
    page = f"; their page is {_line(spec.hf_id)}" if spec.hf_id else ""
    note = (
        "`base.json` holds the sha256 of the weights that the adapter was trained on, and how they are built. The "
        f"base's own weights are not stored here{page}."
    )
    return _join(
        _front_matter(model, "peft"), "# SEAL adapter", lead, _facts(model), _training(model), _evaluation(evaluation),
        "## Use", _code(snippet), note, _terms(model, ""),
    )  # fmt: skip


def _join(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


_MARKUP = re.compile(r"([\\`*\[\]<>|&$])")
#: text that is itself in YAML, and words that are not
_PLAIN, _NO_TEXT = re.compile(r"[A-Za-z][\w./-]*"), ("yes", "no", "true", "false", "on", "off", "null", "y", "n")


def _line(text: Any) -> str:
    """Text of anybody in Markdown: on one line, and shown as it is, whatever marks it holds."""
    return _MARKUP.sub(r"\\\1", " ".join(str(text).split()))


def _yaml(text: str) -> str:
    """Text of anybody as a value of the front matter."""
    plain = _PLAIN.fullmatch(text) is not None and text.lower() not in _NO_TEXT
    return text if plain else json.dumps(text, ensure_ascii=False)


def _code(snippet: str) -> str:
    return f"```python\n{snippet.strip()}\n```"


def public_name(spec: EncoderSpec) -> str:
    """The encoder's name; where a folder lay on the machine of the training is nobody's business."""
    name = Path(spec.key.removeprefix(LOCAL)).name if spec.key.startswith(LOCAL) else spec.key
    # It stands between backticks, also in tables.
    return re.sub(r"[`|<>\x00-\x1f]", "_", name)


def _weights(model: SealNet) -> str:
    spec = model.encoder.spec
    name = public_name(spec)
    return f"`{name}`" if spec.pretrained else f"`{name}` with **random weights** (seed {spec.seed})"


def _front_matter(model: SealNet, library: str) -> str:
    spec = model.encoder.spec
    licence = spec.licence.lower()
    lines = ["---", f"library_name: {library}"]
    if licence in _KNOWN_LICENCES:
        lines.append(f"license: {licence}")
    else:
        lines += ["license: other", f"license_name: {_yaml(licence.replace(' ', '-'))}"]
    lines += [f"base_model: {_yaml(spec.hf_id)}"] if spec.hf_id else []
    lines += ["tags:", "- pathology", "- spatial-transcriptomics", "- image-feature-extraction", "---"]
    return "\n".join(lines)


def _facts(model: SealNet) -> str:
    spec, training = model.encoder.spec, model.provenance
    unknown = _line(training.get("note", "not recorded"))
    rows = {
        "Base encoder": f"{_weights(model)}, licence: {_line(spec.licence)}",
        "Embedding": f"{spec.pool}, {spec.dim} values",
        "Crops": f"{model.crop.crop_um:g} µm at {model.crop.crop_px} px",
        "Adapter": _line(model.adapter.describe(spec.n_blocks)),
        "Genes in training": f"{len(model.panel)}, log1p-CP10k",
        "Predicts by": _readout(model),
        "Reliability": _line(UNKNOWN if model.reliability is None else model.reliability.summary()),
        "Intervals on new patients": _line("unknown" if model.intervals is None else model.intervals.summary()),
        "Novelty of other sections": _line("unknown" if model.novelty is None else model.novelty.summary()),
        **({} if model.local is None else {"Expression of single patches": _line(model.local.summary())}),
        "Training sections": _line(", ".join(map(str, training.get("sections", [])))) or unknown,
        "Training patients": _line(", ".join(map(str, training.get("patients", [])))) or unknown,
        "Spots": _line(training.get("n_spots", "not recorded")),
        "Base citation": _line(spec.citation) or "not recorded",
        "Published by its authors as": _line(training.get("source", "")),
        "Fingerprint": f"`{model.fingerprint}`",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items() if value != "")])


def _readout(model: SealNet) -> str:
    """What predicts expression, and how it was chosen."""
    if (readout := model.readout) is None:
        return "head"
    facts = readout.facts
    rank = f" of rank {facts['rank']}" if facts["rank"] else ""
    seen = [f"fields of {', '.join(f'{um:g}' for um in readout.fields)} µm"] if readout.fields else ["the crop"]
    seen += [] if readout.width is None else [f"beside what lies around it, σ {readout.width:g} µm"]
    best = max(facts["scores"].values())
    return (
        f"{_line(facts['kind'])}{rank} on {_line(facts['target'])} ({' '.join(seen)}); mean Pearson {best:.3f} over "
        f"the panel on held-out {_line(facts['held_out'])}, whose crops the adapter has seen"
    )


def _training(model: SealNet) -> str:
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
    names = [_line(" ".join(str(part) for part in column if part)) for column in wide.columns]
    # NaN differs from itself.
    rows = [
        f"| {_line(method)} | {' | '.join('' if v != v else f'{v:.3f}' for v in values)} |"
        for method, *values in wide.itertuples()
    ]
    sections = _line(", ".join(map(str, table["section"].unique())))
    head = [f"| method | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    return "\n".join([f"## Evaluation on {sections}", "", *head, *rows])


def _terms(model: SealNet, stored: str) -> str:
    licence = f"The licence of the base encoder ({_line(model.encoder.spec.licence)}) applies to this model too."
    return " ".join(filter(None, [licence, stored, "Research use only; not for diagnosis."]))
