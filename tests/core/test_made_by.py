"""Which embeddings may be compared: one record, whoever asks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sealst._core.made_by import MadeBy

ENTRY = {
    "model": "uni",
    "fingerprint": "uni-1234",
    "pool": "cls",
    "modality": "image",
    "crop_um": 112.0,
    "crops": {"s1_spots": {"crop_um": 112.0, "crop_px": 224}},
}


def test_an_entry_is_read_and_comes_back_from_plain_values():
    made = MadeBy.of(ENTRY)
    assert made == MadeBy("uni", "uni-1234", "cls", "image", 112.0, 224)
    assert MadeBy(**made.as_dict()) == made
    assert made.text == "uni-1234 at 112 µm, 224 px"
    assert MadeBy.of({"modality": "image"}) is None
    assert MadeBy.of({"model": "0123abcd", "crops": ENTRY["crops"]}).text == "0123abcd"


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("model", "conch", "model: 'conch', not 'uni'"),
        ("fingerprint", "uni-9", "fingerprint: 'uni-9', not 'uni-1234'"),
        ("pool", "mean", "pool: 'mean', not 'cls'"),
        ("crop_um", 64.0, "crop_um: 64.0, not 112.0"),
        ("crop_px", 112, "crop_px: 112, not 224"),
    ],
)
def test_what_differs_is_said_and_what_is_unknown_contradicts_nothing(field, value, text):
    made = MadeBy.of(ENTRY)
    other = replace(made, **{field: value})
    assert made.differences(other) == [text]
    assert made.text != other.text or field in ("model", "pool")
    if field != "model":
        assert made.differences(replace(made, **{field: None})) == []


@pytest.mark.parametrize(
    ("entry", "adapted"),
    [
        ({"model": "1f2e3d4c5b6a7988"}, True),
        ({"model": "seal-uni2-h-1f2e3d4c"}, True),
        ({"model": "seal-uni2-h-1f2e3d4c-frozen"}, False),
        ({"model": "uni2-h", "fingerprint": "uni2-h-1c5cb8b7", "pool": "cls", "crop_um": 112.0}, False),
        ({"model": "uni_v1"}, False),
    ],
)
def test_what_made_an_embedding_says_whether_it_was_adapted(entry, adapted):
    assert MadeBy.is_adapted(MadeBy.of(entry).text) is adapted
    assert MadeBy.is_adapted(None) is None
