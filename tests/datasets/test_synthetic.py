"""`datasets.synthetic`: truth that fits the picture, determinism, units, storage."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from scipy.spatial import cKDTree
from scipy.stats import t as student
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import sealst as sl
from sealst import DataError
from sealst.datasets._synthetic.histology import CLASSES, KINDS, make_tissue, smooth_field
from sealst.datasets._synthetic.programs import HOUSEKEEPING, N_NAMED, draw_counts, gene_programs
from sealst.datasets._synthetic.sections import cells_in_spots, classes_in_spots, lattice

SMALL = {"size_um": 500.0, "mpp": 2.0, "n_genes": 200}


def pixels(sdata: sd.SpatialData) -> np.ndarray:
    return np.moveaxis(np.asarray(next(iter(sdata.images.values()))["scale0"]["image"]), 0, 2)


def counts(sdata: sd.SpatialData) -> np.ndarray:
    return sdata.tables["table"].X.toarray()


def truth(sdata: sd.SpatialData, what: str) -> pd.DataFrame:
    return sdata.tables["table"].obsm[f"truth_{what}"]


def tissue_colour(sdata: sd.SpatialData) -> np.ndarray:
    """Mean optical density of pixels that are not glass, by channel."""
    image = pixels(sdata).reshape(-1, 3).astype(float)
    return -np.log(image[image.mean(1) < 215] / 245 + 1e-3).mean(0)


def crop_statistics(sdata: sd.SpatialData, mpp: float) -> pd.DataFrame:
    """Mean and spread of the colours, histogram of red, shares of white and blood, in 112 and 56 µm around a spot."""
    image, rows = pixels(sdata), []
    for x, y in sdata.tables["table"].obsm["spatial"]:
        row: dict[str, float] = {}
        for half in (28, 56):
            at = slice(int(y - half / mpp), int(y + half / mpp)), slice(int(x - half / mpp), int(x + half / mpp))
            crop = image[at].reshape(-1, 3).astype(float)
            row |= {f"{name}_{half}": v for name, v in zip("rgb", crop.mean(0), strict=True)}
            row |= {f"sd_{name}_{half}": v for name, v in zip("rgb", crop.std(0), strict=True)}
            row |= {f"below_{cut}_{half}": (crop[:, 0] < cut).mean() for cut in (90, 110, 140, 170)}
            row[f"white_{half}"] = (crop.mean(1) > 225).mean()
            row[f"blood_{half}"] = ((crop[:, 0] > 190) & (crop[:, 1] < 110)).mean()
        rows.append(row)
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def section() -> sd.SpatialData:
    return sl.datasets.synthetic(**SMALL)


@pytest.fixture(scope="module")
def cohort() -> list[sd.SpatialData]:
    """Six sections of one patient, dense spots."""
    return sl.datasets.synthetic(6, n_patients=1, size_um=800, mpp=1.0, pitch_um=60, n_genes=160, seed=3)


@pytest.fixture(scope="module")
def statistics(cohort: list[sd.SpatialData]) -> list[pd.DataFrame]:
    return [crop_statistics(section, 1.0) for section in cohort]


@pytest.fixture(scope="module")
def probe(cohort: list[sd.SpatialData], statistics: list[pd.DataFrame]) -> pd.DataFrame:
    """R² and Pearson r of every program in four sections, by a ridge trained on two others.

    One fixed model, so that the sections' values are independent (leaving out one section at a time would not be).
    """
    x, y = [s.to_numpy() for s in statistics], [truth(s, "programs") for s in cohort]
    found = []
    for program in y[0]:
        model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 4, 11)))
        model.fit(np.concatenate(x[:2]), np.concatenate([frame[program] for frame in y[:2]]))
        for crop, frame in zip(x[2:], y[2:], strict=True):
            true, guess = frame[program].to_numpy(), model.predict(crop)
            r2 = 1 - np.sum((true - guess) ** 2) / np.sum((true - true.mean()) ** 2)
            found.append((program, r2, np.corrcoef(true, guess)[0, 1]))
    return pd.DataFrame(found, columns=["program", "r2", "r"])


# ------------------------------------------------------------------------------------------- truth and picture


@pytest.mark.parametrize(
    "program", ["epithelium", "tumour", "stroma", "t_cell", "b_cell", "plasma_cell", "adipose", "proliferation"]
)
def test_visible_programs_can_be_read_from_the_picture(probe: pd.DataFrame, program: str) -> None:
    assert probe.loc[probe["program"] == program, "r2"].mean() > 0.6


def test_small_vessels_are_harder_but_not_invisible(probe: pd.DataFrame) -> None:
    assert probe.loc[probe["program"] == "endothelium", "r2"].mean() > 0.2


@pytest.mark.parametrize("program", ["hidden_1", "hidden_2"])
def test_hidden_programs_cannot_be_read_from_the_picture(probe: pd.DataFrame, program: str) -> None:
    of = probe[probe["program"] == program]
    reach = student.ppf(0.975, len(of) - 1) * of["r"].sem()
    assert of["r"].mean() - reach <= 0 <= of["r"].mean() + reach
    assert of["r2"].mean() < 0.1


def test_hidden_programs_are_smooth_and_vary(cohort: list[sd.SpatialData]) -> None:
    table = cohort[0].tables["table"]
    values = truth(cohort[0], "programs")[["hidden_1", "hidden_2"]].to_numpy()
    near = cKDTree(table.obsm["spatial"]).query(table.obsm["spatial"], k=2)[1][:, 1]
    assert (values.std(0) > 0.15).all()
    assert (np.abs(values - values[near]).mean(0) < 0.6 * np.abs(values - values[::-1]).mean(0)).all()


def test_composition_sums_to_one_and_fat_is_white(cohort: list[sd.SpatialData], statistics: list[pd.DataFrame]) -> None:
    composition = pd.concat([truth(s, "composition") for s in cohort])
    assert list(composition) == list(CLASSES)
    np.testing.assert_allclose(composition.sum(axis=1), 1)
    white = pd.concat(statistics)["white_28"].to_numpy()
    assert white[composition["adipose"] > 0.95].mean() > 0.6
    assert white[composition["tumour"] > 0.95].mean() < 0.05


def test_nuclei_are_what_was_drawn(cohort: list[sd.SpatialData], statistics: list[pd.DataFrame]) -> None:
    dark = pd.concat(statistics)["below_110_28"]
    nuclei = np.concatenate([s.tables["table"].obs["truth_nuclei"] for s in cohort])
    assert np.corrcoef(dark, nuclei)[0, 1] > 0.8


def test_markers_follow_their_program_and_other_genes_do_not(cohort: list[sd.SpatialData]) -> None:
    net = sl.datasets.synthetic_net()
    x = np.concatenate([counts(s) for s in cohort])
    log = pd.DataFrame(np.log1p(1e4 * x / x.sum(1, keepdims=True)), columns=cohort[0].tables["table"].var_names)
    programs = pd.concat([truth(s, "programs") for s in cohort])
    for program in programs:
        genes = net.loc[net["source"] == program, "target"]
        assert np.corrcoef(log[genes].mean(axis=1), programs[program])[0, 1] > 0.7, program
    assert abs(np.corrcoef(log["HID1_01"], programs["tumour"])[0, 1]) < 0.35


def test_cells_in_spots_counts_a_known_layout() -> None:
    tissue = make_tissue(np.random.default_rng(0), 500)
    x, y = 250.0, 250.0
    inside = np.hypot(*(tissue.nuclei.xy - (x, y)).T) <= 50
    expected = np.bincount(tissue.nuclei.kind[inside], minlength=len(KINDS)) / (np.pi * 0.05**2)
    np.testing.assert_allclose(cells_in_spots(tissue, np.array([[x, y]]), 100)[0], expected)


def test_classes_in_spots_of_half_glass() -> None:
    tissue = make_tissue(np.random.default_rng(0), 500)
    tissue.labels[:] = CLASSES.index("stroma")
    tissue.labels[:, :125] = CLASSES.index("background")
    share = classes_in_spots(tissue, np.array([[250.0, 250.0], [400.0, 250.0]]), 100)
    assert share[0, CLASSES.index("background")] == pytest.approx(0.5, abs=0.02)
    assert share[1, CLASSES.index("stroma")] == 1


def test_smooth_field_has_the_scale_asked_for() -> None:
    rng = np.random.default_rng(0)
    field = np.stack([smooth_field(rng, 200, 40) for _ in range(40)])
    near, far = (np.mean(field[:, :, :-lag] * field[:, :, lag:]) for lag in (4, 100))
    assert field.std() == pytest.approx(1)
    assert near > 0.95
    assert abs(far) < 0.2


# --------------------------------------------------------------------------------------------------- counts


def test_counts_are_raw_counts(section: sd.SpatialData) -> None:
    x = counts(section)
    np.testing.assert_array_equal(x, np.round(x))
    assert x.min() >= 0
    assert (x.sum(1) > 0).all()


def test_depth_is_the_mean_total() -> None:
    totals = {depth: counts(sl.datasets.synthetic(**SMALL, depth=depth)).sum(1).mean() for depth in (500.0, 4000.0)}
    for depth, total in totals.items():
        assert total == pytest.approx(depth, rel=0.25)


def draw_flat(depth: float) -> np.ndarray:
    """Counts of 4000 spots without any program, all alike but for the noise."""
    definition, n = gene_programs(N_NAMED), 4000
    return draw_counts(
        np.random.default_rng(0),
        definition,
        np.zeros((n, len(definition.fold))),
        cellularity=np.ones(n),
        shift=np.zeros(N_NAMED),
        depth=depth,
    )


def test_counts_have_the_expected_mean_and_scatter_more_than_poisson() -> None:
    x, base = draw_flat(5000), gene_programs(N_NAMED).base
    strong = base > base.mean()
    np.testing.assert_allclose((x.sum(0) / x.sum())[strong], (base / base.sum())[strong], rtol=0.05)
    assert (x.var(0)[strong] > 3 * x.mean(0)[strong]).all()


def test_weak_genes_drop_out() -> None:
    x = draw_flat(300)
    weak = (x.mean(0) > 0.7) & (x.mean(0) < 2)
    assert weak.sum() > 20
    # Gamma-Poisson noise of shape 8 alone gives this many zeros.
    assert ((x == 0).mean(0)[weak] > (1 + x.mean(0)[weak] / 8) ** -8).all()


def test_genes_are_the_same_everywhere(section: sd.SpatialData) -> None:
    other = sl.datasets.synthetic(**{**SMALL, "n_genes": 170}, seed=9)
    names, fewer = list(section.tables["table"].var_names), list(other.tables["table"].var_names)
    assert names[:170] == fewer
    assert {"EPCAM", "MKI67", "MS4A1", "HID1_01", "ACTB", "GENE0001"} <= set(fewer)
    np.testing.assert_array_equal(gene_programs(170).fold, gene_programs(200).fold[:, :170])
    np.testing.assert_array_equal(gene_programs(170).base, gene_programs(200).base[:170])


def test_net_lists_every_program_gene(section: sd.SpatialData) -> None:
    net, stored = sl.datasets.synthetic_net(), section.tables["table"].uns["synthetic"]["program_genes"]
    assert list(net) == ["source", "target", "weight"]
    assert {p: list(g) for p, g in net.groupby("source", sort=False)["target"]} == stored
    assert net["weight"].between(0.2, 1).all()
    assert set(net["target"]).isdisjoint(HOUSEKEEPING)
    assert set(net["target"]) <= set(section.tables["table"].var_names)


# --------------------------------------------------------------------------------------------- spots and units


@pytest.mark.parametrize(("array", "neighbours"), [("hex", 6), ("square", 4)])
@pytest.mark.parametrize("pitch", [60.0, 100.0])
def test_lattice_pitch_in_um(array: str, neighbours: int, pitch: float) -> None:
    sdata = sl.datasets.synthetic(size_um=900, mpp=2.0, n_genes=150, array=array, pitch_um=pitch, spot_um=50)
    xy = sdata.tables["table"].obsm["spatial"] * 2.0
    distance = cKDTree(xy).query(xy, k=neighbours + 1)[0][:, 1:]
    assert distance.min() == pytest.approx(pitch)
    full = np.isclose(distance, pitch).all(1)
    assert full.any()
    assert sdata.shapes["P1_S1_spots"]["radius"].iloc[0] * 2.0 == pytest.approx(25)


def test_array_positions_match_the_centres(section: sd.SpatialData) -> None:
    obs, xy = section.tables["table"].obs, section.tables["table"].obsm["spatial"] * SMALL["mpp"]
    assert ((obs["array_row"] + obs["array_col"]) % 2 == 0).all()
    expected = np.column_stack([obs["array_col"] * 50.0, obs["array_row"] * 100.0 * np.sqrt(0.75)])
    np.testing.assert_allclose(xy - xy[0], expected - expected[0], atol=1e-9)


def test_lattice_is_centred_and_keeps_its_margin() -> None:
    xy, _ = lattice(1000, 100, 60, hexagonal=True)
    assert xy.min() >= 60
    assert xy.max() <= 940
    np.testing.assert_allclose(xy.min(0) + xy.max(0), 1000)


def test_only_spots_on_tissue_are_kept(section: sd.SpatialData) -> None:
    table = section.tables["table"]
    assert table.obs["in_tissue"].dtype == bool
    assert table.obs["in_tissue"].all()
    assert truth(section, "composition")["background"].max() <= 0.5
    assert table.n_obs < len(lattice(500, 100, 60, hexagonal=True)[0])


def test_picture_has_the_size_asked_for() -> None:
    for mpp in (1.0, 3.0):
        sdata = sl.datasets.synthetic(size_um=450, mpp=mpp, n_genes=150)
        assert pixels(sdata).shape == (450 / mpp, 450 / mpp, 3)
        assert pixels(sdata).dtype == np.uint8


# ------------------------------------------------------------------------------------- seeds, patients, batches


def test_same_seed_same_section(section: sd.SpatialData) -> None:
    again, other = sl.datasets.synthetic(**SMALL), sl.datasets.synthetic(**SMALL, seed=1)
    np.testing.assert_array_equal(pixels(section), pixels(again))
    np.testing.assert_array_equal(counts(section), counts(again))
    pd.testing.assert_frame_equal(truth(section, "programs"), truth(again, "programs"))
    assert (pixels(section) != pixels(other)).mean() > 0.5


def test_a_section_does_not_depend_on_how_many_are_made(section: sd.SpatialData) -> None:
    first = sl.datasets.synthetic(2, **SMALL)[0]
    np.testing.assert_array_equal(pixels(section), pixels(first))
    np.testing.assert_array_equal(counts(section), counts(first))


def test_patients_differ_in_stain_and_their_sections_share_it() -> None:
    sections = sl.datasets.synthetic(4, n_patients=2, **SMALL)
    tables = [s.tables["table"] for s in sections]
    assert [t.obs["section"].iloc[0] for t in tables] == ["P1_S1", "P1_S2", "P2_S1", "P2_S2"]
    assert [t.obs["patient"].iloc[0] for t in tables] == ["P1", "P1", "P2", "P2"]
    stains = [t.uns["synthetic"]["stain"] for t in tables]
    assert stains[0] == stains[1]
    assert stains[2] == stains[3]
    assert stains[0] != stains[2]
    hue = [c / c.sum() for c in map(tissue_colour, sections)]
    within = np.linalg.norm(hue[0] - hue[1]) + np.linalg.norm(hue[2] - hue[3])
    assert np.linalg.norm(hue[0] + hue[1] - hue[2] - hue[3]) > within


def test_stain_variation_zero_gives_every_patient_the_same_stain() -> None:
    first, second = sl.datasets.synthetic(2, **SMALL, stain_variation=0.0)
    assert first.tables["table"].uns["synthetic"]["stain"] == second.tables["table"].uns["synthetic"]["stain"]


@pytest.mark.parametrize("amount", [0.0, 0.8])
def test_batch_effect_shifts_genes_between_patients(amount: float) -> None:
    sections = sl.datasets.synthetic(2, **SMALL, pitch_um=60, batch_effect=amount, depth=20000)
    background = [g for g in sections[0].tables["table"].var_names if g.startswith("GENE")]
    share = [s.tables["table"][:, background].X.toarray().sum(0) for s in sections]
    seen = np.log(share[0] / share[0].sum()) - np.log(share[1] / share[1].sum())
    stored = [s.tables["table"].uns["synthetic"]["batch_shift"] for s in sections]
    assert all(len(s) == SMALL["n_genes"] for s in stored)
    if amount:
        assert np.corrcoef(seen, (stored[0] - stored[1])[-len(background) :])[0, 1] > 0.9
        assert seen.std() == pytest.approx(amount * np.sqrt(2), rel=0.4)
    else:
        assert seen.std() < 0.15
        assert not np.any(stored)


def test_default_is_one_patient_per_section() -> None:
    sections = sl.datasets.synthetic(3, **SMALL)
    assert [s.tables["table"].obs["patient"].iloc[0] for s in sections] == ["P1", "P2", "P3"]


# ------------------------------------------------------------------------------------------------------ storage


def test_zarr_round_trip(section: sd.SpatialData, tmp_path: object) -> None:
    path = f"{tmp_path}/section.zarr"
    section.write(path)
    back, before = sd.read_zarr(path), section.tables["table"]
    after = back.tables["table"]
    np.testing.assert_array_equal(pixels(back), pixels(section))
    _same_truth(before, after)


def test_h5ad_round_trip(section: sd.SpatialData, tmp_path: object) -> None:
    before = section.tables["table"]
    before.write_h5ad(f"{tmp_path}/table.h5ad")
    _same_truth(before, ad.read_h5ad(f"{tmp_path}/table.h5ad"))


def _same_truth(before: ad.AnnData, after: ad.AnnData) -> None:
    for key in ("truth_composition", "truth_programs"):
        pd.testing.assert_frame_equal(after.obsm[key], before.obsm[key])
        assert list(after.obsm[key].index) == list(after.obs_names)
    old, new = before.uns["synthetic"], after.uns["synthetic"]
    assert list(new["visible_programs"]) == old["visible_programs"]
    assert list(new["hidden_programs"]) == ["hidden_1", "hidden_2"]
    assert {p: list(g) for p, g in new["program_genes"].items()} == old["program_genes"]
    assert set(new["program_genes"]) == set(after.obsm["truth_programs"])
    np.testing.assert_array_equal(new["batch_shift"], old["batch_shift"])
    assert new["seed"] == 0
    assert new["mpp"] == SMALL["mpp"]


# -------------------------------------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_sections": 0}, r"`n_sections` must be a whole number of at least 1, found 0"),
        ({"n_sections": 1.5}, r"`n_sections` must be a whole number"),
        ({"n_patients": 2}, r"`n_patients` \(2\) must not exceed `n_sections` \(1\)"),
        ({"n_patients": 0}, r"`n_patients` must be a whole number of at least 1"),
        ({"n_genes": 10}, rf"`n_genes` must be a whole number of at least {N_NAMED}, found 10: the marker"),
        ({"array": "hexagon"}, r"`array` must be one of 'hex', 'square', found 'hexagon'"),
        ({"size_um": 100}, r"`size_um` must be at least 400, found 100"),
        ({"mpp": 0}, r"`mpp` must be a positive number"),
        ({"mpp": 8}, r"`mpp` must lie between 0.1 and 4, found 8"),
        ({"pitch_um": 50}, r"`spot_um` \(55\) must not exceed `pitch_um` \(50\)"),
        ({"batch_effect": -0.1}, r"`batch_effect` must be a positive number"),
        ({"stain_variation": -1}, r"`stain_variation` must be a positive number"),
        ({"depth": 0}, r"`depth` must be a positive number"),
        ({"seed": -1}, r"`seed` must be a whole number from 0 to"),
        ({"size_um": 400, "pitch_um": 350, "mpp": 2}, r"Only \d of \d spots lie on tissue.*Raise `size_um`"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        sl.datasets.synthetic(**arguments)
