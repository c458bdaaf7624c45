"""What made an embedding: the one record by which embeddings are known to be of one kind."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sealst._given.schema import Blocks, Name, Positive, Width, check_fields

#: SEAL models go by it, or in the files of other tools by a name with its beginning; encoders have names of their own
_FINGERPRINT = re.compile(r"[0-9a-f]{16}|seal-.+-[0-9a-f]{8}")


@dataclass(frozen=True)
class MadeBy:
    """Model and crops behind an embedding; what is None is not known and contradicts nothing.

    Embeddings of a SEAL model go by its fingerprint, which fixes weights, pooling and crops. Those of an encoder mean
    different things with other weights (`fingerprint`), another pooling or other crops: squares of 112 µm at 112 px and
    the same at 224 px are about as far apart as two spots.
    """

    model: Name
    fingerprint: Name | None = None
    pool: Name | None = None
    modality: Name | None = None
    crop_um: Positive | None = None
    crop_px: Width | None = None
    #: flips and rotations that it is the mean of
    views: Blocks | None = None

    def __post_init__(self) -> None:
        check_fields(self, "made_by")

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> MadeBy | None:
        """What an entry of ``.uns["sealst"]["embed"]`` says; None where it does not name the model."""
        if "model" not in entry:
            return None
        texts = {name: str(entry[name]) for name in ("fingerprint", "pool", "modality") if entry.get(name) is not None}
        crops = [dict(one) for one in dict(entry.get("crops", {})).values()]
        um, px = entry.get("crop_um"), crops[0].get("crop_px") if crops else None
        return cls(
            str(entry["model"]),
            crop_um=None if um is None else float(um),
            crop_px=None if px is None else int(px),
            views=None if entry.get("views") is None else int(entry["views"]),
            **texts,
        )

    @staticmethod
    def is_adapted(text: str | None) -> bool | None:
        """Whether `text` stands for a SEAL model, in place of an encoder as published; None where it is not known."""
        return None if text is None else _FINGERPRINT.fullmatch(text) is not None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; the arguments of the class."""
        return asdict(self)

    def differences(self, other: MadeBy) -> list[str]:
        """In what another record differs, in words: ``"crop_px: 112, not 224"``; empty where both may be compared."""
        pairs = {name: (getattr(other, name), value) for name, value in asdict(self).items()}
        known = {name: (found, own) for name, (found, own) in pairs.items() if found is not None and own is not None}
        return [f"{name}: {found!r}, not {own!r}" for name, (found, own) in known.items() if found != own]

    @property
    def text(self) -> str:
        """One text, the same for embeddings that may be compared; files of bags keep it."""
        if self.fingerprint is None and self.pool is None:
            return self.model
        name = self.fingerprint or f"{self.model} ({self.pool})"
        size = [f"{self.crop_um:g} µm"] if self.crop_um is not None else []
        size += [f"{self.crop_px} px"] if self.crop_px is not None else []
        size += [f"{self.views} views"] if (self.views or 1) > 1 else []
        return f"{name} at {', '.join(size)}" if size else name
