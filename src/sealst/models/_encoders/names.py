"""Names of encoders that exist, known without importing timm."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from sealst._errors import WeightsError
from sealst._validate import listed
from sealst.models._encoders.records import REFUSED, REGISTRY

LOCAL, HUB = "local-dir:", "hf-hub:"
_MODEL = re.compile(r"^@register_model\s*\ndef (\w+)\(", re.MULTILINE)


def check_encoder(encoder: str) -> None:
    """Raise `WeightsError` where no encoder can be called so, in a tenth of a second; what can be is built later."""
    if encoder in REFUSED:
        raise WeightsError(REFUSED[encoder])
    elsewhere = encoder.startswith((LOCAL, HUB, "/", ".", "~")) or Path(encoder).exists()
    if not elsewhere and encoder not in REGISTRY and not _is_word_of_timm(encoder.split(".")[0]):
        raise no_encoder(encoder, timm_names())


def no_encoder(encoder: str, models: Iterable[str]) -> WeightsError:
    """What is said of a name that is none, with those that are near; `models` are timm's."""
    near = difflib.get_close_matches(encoder.lower(), [*REGISTRY, *models], n=4, cutoff=0.4)
    return WeightsError(
        f"No encoder is named {encoder!r}; near names: {listed(near)}. Pass a key of `sl.models.list_encoders()`, "
        "a timm model or 'local-dir:<folder>'."
    )


@cache
def timm_names() -> list[str]:
    """What `timm.list_models` lists, read from timm's source."""
    return sorted(name for text in _sources() for name in _MODEL.findall(text))


def _is_word_of_timm(name: str) -> bool:
    # Former names stand between quotes.
    word = re.compile(rf"\bdef {re.escape(name)}\(|['\"]{re.escape(name)}['\"]")
    return any(word.search(text) for text in _sources())


@cache
def _sources() -> tuple[str, ...]:
    found = find_spec("timm")
    folders = () if found is None else found.submodule_search_locations or ()
    return tuple(path.read_text(encoding="utf-8") for one in folders for path in sorted(Path(one).glob("models/*.py")))
