"""Calls that take several sections, on collections of which one is open at a time."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import spatialdata as sd

import sealst as sl
from sealst.io._stores import store as _store


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cohort")


@pytest.fixture
def cohort(ready, folder):
    """Folder with three prepared stores, written once: sections a, b, c of patients p0, p1, p2."""
    for i, name in enumerate("abc"):
        if not (folder / f"{name}.zarr").exists():
            ready(section=name, patient=f"p{i}", seed=i).write(folder / f"{name}.zarr")
    return folder


@pytest.fixture
def alive(monkeypatch):
    """Count, whenever a store is opened, how many of the sections and tables opened before are still held."""
    # The collector looks at what is made from here on, not at everything that earlier tests have left.
    gc.collect()
    gc.freeze()
    opened: list[weakref.ref] = []
    counts: list[int] = []
    read = _store.read_zarr

    def counted(path, **options):
        gc.collect()
        counts.append(sum(one() is not None for one in opened))
        sdata = read(path, **options)
        opened.extend((weakref.ref(sdata), weakref.ref(sdata.tables["table"])))
        return sdata

    monkeypatch.setattr(_store, "read_zarr", counted)
    yield counts
    gc.unfreeze()


def in_memory(folder):
    return [sd.read_zarr(folder / f"{name}.zarr") for name in "abc"]


def test_genes_are_chosen_with_one_section_open(cohort, alive):
    panel = sl.pp.select_genes(sl.io.read_collection(cohort), 5)
    assert len(alive) == 9
    assert set(alive) == {0}
    assert panel.fingerprint == sl.pp.select_genes(in_memory(cohort), 5).fingerprint


# A collection is opened again and again: a minute on two cores.
@pytest.mark.slow
@pytest.mark.parametrize("by", ["patient", "block"])
def test_folds_are_made_with_one_section_open(cohort, alive, by):
    options = {"by": by, "allow_shared_patients": True} | ({"block_um": 200.0, "n_folds": 2} if by == "block" else {})
    sections = sl.io.read_collection(cohort)
    folds = sl.pp.split(sections, **options)
    assert len(alive) > 3
    assert set(alive) == {0}
    for one, other in zip(folds, sl.pp.split(in_memory(cohort), **options), strict=True):
        assert one.name == other.name
        for mine, theirs in ((one.train, other.train), (one.test, other.test)):
            assert list(mine) == list(theirs)
            assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
    sl.pp.check_split(sections[:2], sections[2:])
    with pytest.raises(sl.LeakError, match="patient 'p1'"):
        sl.pp.check_split(sections[:2], sections[1:])


def test_one_section_needs_no_list(cohort):
    section = in_memory(cohort)[0]
    assert sl.pp.select_genes(section, 5).sections == ("a",)
    assert len(sl.pp.split(section, by="block", block_um=200, n_folds=2, allow_shared_patients=True)) == 2
    sl.pp.check_split(section, in_memory(cohort)[1])


# A collection is opened again and again: a minute on two cores.
@pytest.mark.slow
def test_training_gathers_with_one_section_open(cohort, alive, finetune, fast):
    sections, params = sl.io.read_collection(cohort), fast | {"epochs": 1}
    model = finetune(sections[:2], validation=sections[2:], params=params)
    # The two sides are collections of their own, each of which keeps one section.
    assert max(alive) <= 2
    assert model.panel.fingerprint == sl.pp.select_genes(in_memory(cohort)[:2], 8).fingerprint
    assert model.provenance["n_spots"] == 72
    assert model.provenance["sections"] == ["a", "b"]
    assert model.provenance["validation"] == ["c"]
    assert model.provenance["patients"] == ["p0", "p1"]


# A collection is opened again and again: a minute on two cores.
@pytest.mark.slow
def test_evaluation_and_embedding_take_collections(cohort, alive, model, tmp_path):
    sections = sl.io.read_collection(cohort)
    options = {"genes": {"mine": ["EPCAM", "VIM"]}, "allow_shared_patients": True}
    table = sl.tl.evaluate(sections[:2], model, test=sections[2:], **options).table
    assert max(alive) <= 2
    memory = in_memory(cohort)
    expected = sl.tl.evaluate(memory[:2], model, test=memory[2:], **options).table
    np.testing.assert_allclose(table["value"], expected["value"], atol=1e-5)
    copied = sections[:2].write(tmp_path / "own")
    alive.clear()
    sl.tl.embed(copied, model)
    assert set(alive) == {0}
    embedded = [sd.read_zarr(tmp_path / "own" / f"{name}.zarr").tables["table"].obsm["X_seal"] for name in "ab"]
    for found, sdata in zip(embedded, memory, strict=False):
        np.testing.assert_allclose(
            found, sl.tl.embed(sdata, model, copy=True).tables["table"].obsm["X_seal"], atol=1e-5
        )
    with pytest.raises(sl.DataError, match="`copy=True` works on one section"):
        sl.tl.embed(copied, model, copy=True)
