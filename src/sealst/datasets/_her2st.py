"""Breast cancer sections of Andersson et al. 2021 (her2st): where their files are, and how they are read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import overload

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from spatialdata import SpatialData

from sealst._errors import DataError
from sealst._files import expanded
from sealst._keys import Keys
from sealst._section import record
from sealst._settings import settings
from sealst._validate import check_choice
from sealst.io import read_st

_REPOSITORY = "almaan/her2st"
_COMMIT = "85df7411b987a7dec3feff9718b869a7a82091ec"
_BASE_URL = f"https://raw.githubusercontent.com/{_REPOSITORY}/{_COMMIT}"
_TIMEOUT_S = 30
#: folder with the data sets, ``data/her2st`` and ``data/her2st_counts`` below it
_ENVIRONMENT = "SEALST_SHARED"
_ORGAN = "breast"
_TECHNOLOGY = "Spatial Transcriptomics"


@dataclass(frozen=True)
class _Section:
    patient: str
    #: the authors' number of the patient, where the source names it
    donor: str = ""
    #: path of the H&E in the source repository; without it the section is expression only
    image: str = ""
    #: whether a pathologist's regions exist
    regions: bool = False
    #: width of the image over the width that the spots' pixels refer to
    coordinate_scale: float = 1.0
    #: id of the section in HEST-1k
    hest_id: str = ""

    @property
    def dataset(self) -> str:
        """Folder that holds the section's files."""
        return "her2st" if self.image else "her2st_counts"


_SECTIONS: Mapping[str, _Section] = MappingProxyType(
    {
        "A1": _Section(
            "A", donor="9769", image="app/www/imgs/A1_HE_image_dark.png", regions=True, coordinate_scale=2000 / 6954
        ),
        "B4": _Section("B", donor="10737", image="data/ST-imgs/B/B4/BT10737_D2_HE.jpg", hest_id="SPA145"),
        "C2": _Section("C", donor="5714", image="data/ST-imgs/C/C2/5714_HE_BT_C2.jpg", hest_id="SPA141"),
        "C3": _Section("C", donor="5714", image="data/ST-imgs/C/C3/5714_HE_BT_D1.jpg", hest_id="SPA140"),
        "C4": _Section("C", donor="5714", image="data/ST-imgs/C/C4/5714_HE_BT_D2.jpg", hest_id="SPA139"),
        "C5": _Section("C", donor="5714", image="data/ST-imgs/C/C5/5714_HE_BT_E1.jpg", hest_id="SPA138"),
        "D1": _Section("D", regions=True),
        "D4": _Section("D"),
        "E1": _Section("E", regions=True),
        "E2": _Section("E"),
        "F1": _Section("F", regions=True),
        "F2": _Section("F"),
        "G1": _Section("G"),
        "G2": _Section("G", regions=True),
        "H1": _Section("H", regions=True),
        "H2": _Section("H"),
    }
)

#: SHA-256 of every file, by its path below the folder of data sets
_SHA256: Mapping[str, str] = MappingProxyType(
    {
        "her2st/A1/A1-cluster-annotation.tsv.gz": "c23fcfc84336e7ae625ab74976721c26051451d5345bd2e248b440033fa87542",
        "her2st/A1/A1.tsv.gz": "d91035e5d8a9c4ce7865e4c61446deec1a7318602d41b3220e9fcb3ce7e41fe3",
        "her2st/A1/A1_HE_image_dark.png": "e3836547df4772907bb537e53f41794fe4e603e9a6c99c1f6e91ef4342b95a6d",
        "her2st/A1/A1_labeled_coordinates.tsv": "23a0a68dccd54a8397ea4066994edb7110e88373d5b3bc6e35254dda9253fa5f",
        "her2st/A1/A1_selection.tsv": "e5f79223be2ea2aebb082c4759059ab7079b0132052d0944209048ac57788c5d",
        "her2st/B4/B4-cluster-annotation.tsv.gz": "ea7ce6d9630921a9b0d03178988192b7c71baec19eb183ebdfdb991e47d690e4",
        "her2st/B4/B4.tsv.gz": "e38231c2a38c9bc7e6d550eec0e527c1869ee0e525fc913e708d1323c34f5ebb",
        "her2st/B4/B4_selection.tsv": "192b46f3ca414c85753a01a4fb5760a697ca6c0a1aadb949c4687cc6efa9faa0",
        "her2st/B4/BT10737_D2_HE.jpg": "3cb165614ce2a13426381e450220dccac980cc9bda6a90fb041c28ca0e2c753d",
        "her2st/C2/5714_HE_BT_C2.jpg": "26e2f73ae840cdd46c5bba405aae181f13a56a376b9848dff23f7a9c5de7f19e",
        "her2st/C2/C2-cluster-annotation.tsv.gz": "3211500325b1be1cd2be7480f2b094a48647fc25df4d8fe6afb8c48c15650ece",
        "her2st/C2/C2.tsv.gz": "c1c59ea6cffae36b9ecb561b8e2a97e3aa5f4085f748e991a0e330ed9d09773d",
        "her2st/C2/C2_selection.tsv": "235b5f4306b3b57c628ffc82c98c7109602474fbcc79a917b9c50517f99b6b1c",
        "her2st/C3/5714_HE_BT_D1.jpg": "0005a92674014d473040a28f0afca89ce5fa5c44019b479b638ceb3272ceb568",
        "her2st/C3/C3-cluster-annotation.tsv.gz": "a1522a14855bc2022ccbb9ea9cbae59837cbcd310bc4c02727ae6bfa37e6d369",
        "her2st/C3/C3.tsv.gz": "e00c55a3eb9caac5d9c71b8906aae8be8b38f93e23938f4a0ebee17683ef6a2a",
        "her2st/C3/C3_selection.tsv": "7fd76c13370b7804ac3bb377b846d22485cf9223f9dd8dfc25be06e5aaf65755",
        "her2st/C4/5714_HE_BT_D2.jpg": "f40607eb1d5f0d125decd71c48b0c5d29cf6776ad92297fd185631208c82d6f2",
        "her2st/C4/C4-cluster-annotation.tsv.gz": "a5cc7a3a40983a21ea8400145c80a7dc5b13e7468b987ec0610f4c2123978c71",
        "her2st/C4/C4.tsv.gz": "33201f76d41d7131dc600a0f87d9a70383af3503e81698b4d11e6f2e8d73e9da",
        "her2st/C4/C4_selection.tsv": "47e79f3b9dbfa3a8c18af9e948ba7ba4bf0a75ea1b4c292bc714ced7d0917d4c",
        "her2st/C5/5714_HE_BT_E1.jpg": "34028ea41e376396b50c42b0a11a7e689c85be4a8022e668d0a09cc128c04c65",
        "her2st/C5/C5-cluster-annotation.tsv.gz": "5929e9183e09717891fce94a71ec94551a86d5267ebb085067ac1d71894bc4ea",
        "her2st/C5/C5.tsv.gz": "c0f310315ca6110d74dbdf7011e5b42432ba0b8eb5f001824764911988f39338",
        "her2st/C5/C5_selection.tsv": "2114cc3b4da759772112897f1e247d5443c9f8c808e6a9a952eb4fda379a194c",
        "her2st_counts/D1.tsv.gz": "8fe13d29763b3f6a9e85322dae97e05c4ca42b57cef4b1077c88b9b7b6a980ac",
        "her2st_counts/D1_labeled_coordinates.tsv": "c8bf26103d1aac42611d9c85ba3db9c596b9a80ec045ca9b246b8d14d8b3c20f",
        "her2st_counts/D1_selection.tsv": "7ba7843b52ddc2b147ee968fe9466a5d1fa0d884b51def292ce340d88da034eb",
        "her2st_counts/D4.tsv.gz": "4da2a65ffdd6ce52993e4f68b3730326c00ce9304cf8aebaf125efe9997fb898",
        "her2st_counts/D4_selection.tsv": "82e12ff5f14a9564fd0aa9755243e4412e6786fdb559210cef9c3c6ff35a05b0",
        "her2st_counts/E1.tsv.gz": "b2f572ea0a95d256cb172a9284e96b6d2ff236398d4934a992df85c96d11c4cc",
        "her2st_counts/E1_labeled_coordinates.tsv": "29db60fe5b306bb982fbd2bbdd1f9c60eedf90c6ac1d56bedd3c18ed5a369829",
        "her2st_counts/E1_selection.tsv": "a979c36f6310fff965c96f05ad290ca322d88e400b5aed2a1139fdd6f0e2da92",
        "her2st_counts/E2.tsv.gz": "a725a87e1a74ef0c096d421664dd9100bf973e5768c28acfa9c17abb63677a95",
        "her2st_counts/E2_selection.tsv": "1beeac4b7a45e432eb4d9c34460e7a2a3342f77e0bb6dcffae66ae31b1584444",
        "her2st_counts/F1.tsv.gz": "187aa13f204d514851d3674dfa09b4a8d7f2676f1d40d2ef63e9e368c7cf672a",
        "her2st_counts/F1_labeled_coordinates.tsv": "3b59970f0c6ba09d8e0fc9286ace2a295bf06d36c59684162b7a8aca0e021ec5",
        "her2st_counts/F1_selection.tsv": "cf479a5812c317541c7f7d6a4ebf1bfd93b0a1ab3eef35a8da15b9e76164f2f4",
        "her2st_counts/F2.tsv.gz": "7de4ca7c3ccb923f4d636b21a4639284c66da9d97a93e1ab6712b3c453229c04",
        "her2st_counts/F2_selection.tsv": "3a9149a67b05971dfb27edb2261d9ffd2443543021356b0d46f26d8237c1a20d",
        "her2st_counts/G1.tsv.gz": "396153436dfc39e199bdc01447b3f8929aef598d7064c0c24a33da00f54570ea",
        "her2st_counts/G1_selection.tsv": "0e2f630e09a7c0e1869918c0c9afebcff36b86006a6809533fb09405c831a01d",
        "her2st_counts/G2.tsv.gz": "9d51a5ed85bdf60069dcf51beeffba4e90e35e8630ec3b707a2453ffdd608e3b",
        "her2st_counts/G2_labeled_coordinates.tsv": "8466275647ad125569ee94d099cc7b78c15028968ba1dd267a85a81c001a16ff",
        "her2st_counts/G2_selection.tsv": "abae30bb6f434cb2aae34b8ef56da6b613c840d48c49279d55f4600ad496245c",
        "her2st_counts/H1.tsv.gz": "90b391782535f38c9ab20fe8b38f44ebbfdad2201075a677a198cbef12c29b07",
        "her2st_counts/H1_labeled_coordinates.tsv": "b65cbc99ed7a01281bc2eb87be87b902312e47ca91bc1f00ff351489b78434c3",
        "her2st_counts/H1_selection.tsv": "fc9cc5bad3a1e26e48f435696259df38b500042a9565486c15fd37ab7d8f9ed6",
        "her2st_counts/H2.tsv.gz": "e839f271f2cde0ccf8f43f4358133f066be5d75d982839eba75abd7967486a34",
        "her2st_counts/H2_selection.tsv": "c38d3ade8b5674633097b23a66a554831193cee48ba54a7d7418291a9f5533f9",
    }
)


@dataclass(frozen=True)
class _File:
    #: path below the folder of its data set
    local: str
    #: path in the source repository
    source: str
    sha256: str


def _files(name: str) -> dict[str, _File]:
    """Files of a section by role."""
    section = _SECTIONS[name]
    sources = {"counts": f"data/ST-cnts/{name}.tsv.gz", "spots": f"data/ST-spotfiles/{name}_selection.tsv"}
    if section.image:
        sources |= {"image": section.image, "clusters": f"res/ST-cluster/lbl/{name}-cluster-annotation.tsv.gz"}
    if section.regions:
        sources["regions"] = f"data/ST-pat/lbl/{name}_labeled_coordinates.tsv"
    files = {}
    for role, source in sources.items():
        local = (f"{name}/" if section.image else "") + source.rsplit("/", 1)[1]
        files[role] = _File(local, source, _SHA256[f"{section.dataset}/{local}"])
    return files


@overload
def her2st(section: str, *, path: str | PathLike[str] | None = None) -> SpatialData: ...
@overload
def her2st(section: Sequence[str], *, path: str | PathLike[str] | None = None) -> list[SpatialData]: ...
def her2st(section: str | Sequence[str], *, path: str | PathLike[str] | None = None) -> SpatialData | list[SpatialData]:
    """Sections of HER2-positive breast cancer with H&E and legacy Spatial Transcriptomics (100 µm spots, 200 µm apart).

    ======= ======= ===== ======== ==== ==========================
    section patient spots image px mpp  labels
    ======= ======= ===== ======== ==== ==========================
    A1      A       346   2000     3.19 pathologist, clusters
    B4      B       283   9272     0.69 clusters (222 of 283)
    C2      C       187   9274     0.69 clusters (185 of 187)
    C3      C       180   9270     0.69 clusters (179 of 180)
    C4      C       184   9278     0.69 clusters
    C5      C       181   9272     0.69 clusters (179 of 181)
    ======= ======= ===== ======== ==== ==========================

    Image px is the width, mpp is in µm per pixel. C2 to C5 are neighbouring cuts of one tumour, so splits must be by
    patient. Three patients are enough for examples and tests, not for a claim of generalisation.

    The image of A1 is the small version of the authors' web application, with spot coordinates scaled to it: the
    background is masked to black (crops at the edge of the tissue hold some of it) and a small annotated overview is
    pasted into the top right corner (x >= 1500, y <= 534 pixels). No spot lies there; leave the corner out when tiling
    the whole image.

    **Licence.** The source repository states no licence. Treat the files as research material, cite the paper, and
    settle the licence before passing them on. sealst holds none of these files; they are looked for in `path`, in
    ``data/her2st`` below the folder that the environment variable ``SEALST_SHARED`` names, and in ``her2st`` below
    ``sl.settings.cache_dir``, and are otherwise downloaded into the latter. SHA-256 sums are compared at every call.

    Parameters
    ----------
    section
        Name of a section, or several names.
    path
        Folder with the files, one subfolder per section (``<path>/C2/C2.tsv.gz``).

    Returns
    -------
    SpatialData as from `sealst.io.read_st` (a list of them for several names), where ``tables["table"]`` has also

    - ``.obs["label"]``: categorical, the pathologist's region (A1 only)
    - ``.obs["cluster"]``: categorical, the authors' clusters. They were derived from the same counts and are no
      independent truth. Missing for spots that the authors left out.
    - ``.uns["sealst"]["her2st"]``: source, commit, donor, licence and citation

    Raises
    ------
    DataError
        For an unknown section, a file whose checksum differs, or a failed download; the message then lists the files
        and the folder in which to put them.

    Examples
    --------
    >>> import sealst as sl
    >>> sdata = sl.datasets.her2st("C2")  # doctest: +SKIP

    References
    ----------
    Andersson et al., Spatial deconvolution of HER2-positive breast cancer delineates tumor-associated cell type
    interactions, Nature Communications 12, 6012 (2021).
    """
    known = [name for name, facts in _SECTIONS.items() if facts.image]
    names = [section] if isinstance(section, str) else list(section)
    for name in names:
        check_choice("section", name, known)
    found = [_read_section(name, path) for name in names]
    return found[0] if isinstance(section, str) else found


def her2st_counts(section: str, *, path: str | PathLike[str] | None = None) -> AnnData:
    """Counts without images of ten further sections of `her2st` (patients D to H).

    Their images are not to be had, so they serve what needs no picture: gene panels, pathway scores, joins.

    **Licence.** As for `her2st`: the source repository states none.

    Parameters
    ----------
    section
        ``"D1"``, ``"D4"``, ``"E1"``, ``"E2"``, ``"F1"``, ``"F2"``, ``"G1"``, ``"G2"``, ``"H1"`` or ``"H2"``.
    path
        Folder with the files (``<path>/D1.tsv.gz``). Otherwise they are looked for in ``data/her2st_counts`` below the
        folder that the environment variable ``SEALST_SHARED`` names and in ``her2st_counts`` below
        ``sl.settings.cache_dir``, and are downloaded into the latter.

    Returns
    -------
    AnnData of spots by genes, raw counts in ``.X`` (CSR, float32), with

    - ``.obs``: `spot_id`, `patient`, `section`, `organ`, `technology`, `array_row`, `array_col`, and for D1, E1, F1, G2
      and H1 `label`, the pathologist's region (categorical)
    - ``.obsm["spatial"]``: float64, (spots, 2), centres as (x, y) in pixels of the original image
    - ``.uns["sealst"]["her2st"]``: source, commit, licence and citation

    Raises
    ------
    DataError
        For an unknown section, a file whose checksum differs, or a failed download.

    Examples
    --------
    >>> import sealst as sl
    >>> adata = sl.datasets.her2st_counts("D1")  # doctest: +SKIP
    """
    check_choice("section", section, [name for name, facts in _SECTIONS.items() if not facts.image])
    files = _locate(section, path)
    counts = pd.read_csv(files["counts"], sep="\t", index_col=0)
    spots = pd.read_csv(files["spots"], sep="\t")
    spots = spots.set_index(_spot_ids(spots)).loc[counts.index]
    obs = pd.DataFrame({"spot_id": counts.index}, index=[f"{section}_{i}" for i in counts.index])
    facts = {Keys.PATIENT: _SECTIONS[section].patient, Keys.SECTION: section}
    for key, value in (facts | {Keys.ORGAN: _ORGAN, Keys.TECHNOLOGY: _TECHNOLOGY}).items():
        obs[key] = pd.Categorical([value] * len(obs))
    obs[Keys.ARRAY_ROW], obs[Keys.ARRAY_COL] = spots["y"].to_numpy(), spots["x"].to_numpy()
    if "regions" in files:
        obs["label"] = _labels(files["regions"], counts.index)
    var = pd.DataFrame(index=pd.Index(counts.columns.astype(str)))
    table = AnnData(sp.csr_matrix(counts.to_numpy(), dtype=np.float32), obs=obs, var=var)
    table.obsm[Keys.SPATIAL] = spots[["pixel_x", "pixel_y"]].to_numpy(dtype=float)
    record(table, "her2st", _provenance(section))
    return table


def _read_section(name: str, path: str | PathLike[str] | None) -> SpatialData:
    section, files = _SECTIONS[name], _locate(name, path)
    sdata = read_st(
        files["counts"],
        files["spots"],
        files["image"],
        section=name,
        patient=section.patient,
        organ=_ORGAN,
        technology=_TECHNOLOGY,
        coordinate_scale=section.coordinate_scale,
        annotations=files.get("regions"),
    )
    table = sdata.tables[Keys.TABLE]
    table.obs["cluster"] = _labels(files["clusters"], pd.Index(table.obs["spot_id"]))
    record(table, "her2st", _provenance(name))
    return sdata


def _spot_ids(frame: pd.DataFrame) -> pd.Index:
    # Label files give adjusted array coordinates, which round to the spot index.
    whole = frame[["x", "y"]].round().astype(int).astype(str)
    return pd.Index(whole["x"] + "x" + whole["y"])


def _labels(path: Path, ids: pd.Index) -> pd.Categorical:
    frame = pd.read_csv(path, sep="\t", dtype={"label": str}).dropna(subset=["x", "y"])
    return pd.Categorical(pd.Series(frame["label"].to_numpy(), index=_spot_ids(frame)).reindex(ids))


def _provenance(name: str) -> dict[str, str]:
    section = _SECTIONS[name]
    return {
        "section": name,
        "donor": section.donor,
        "hest_id": section.hest_id,
        "source": f"https://github.com/{_REPOSITORY}",
        "commit": _COMMIT,
        "licence": "not stated by the source repository",
        "citation": "Andersson et al., Nature Communications 12, 6012 (2021)",
    }


def _locate(name: str, path: str | PathLike[str] | None) -> dict[str, Path]:
    """Paths of a section's files by role, checksums compared; downloads what is nowhere."""
    dataset, files = _SECTIONS[name].dataset, _files(name)
    cache = Path(settings.cache_dir) / dataset
    roots = [cache]
    if shared := os.environ.get(_ENVIRONMENT):
        roots.insert(0, Path(shared) / "data" / dataset)
    if path is not None:
        roots.insert(0, expanded(path))
        if not roots[0].is_dir():
            raise DataError(f"`path` is no folder: {str(roots[0].absolute())!r}. Leave it out to download the files.")
    found = {}
    for role, file in files.items():
        if (here := next((p for root in roots if (p := root / file.local).is_file()), None)) is not None:
            with here.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if digest != file.sha256:
                raise DataError(
                    f"{str(here)!r} is not the source's file: its SHA-256 is {digest[:16]}…, expected "
                    f"{file.sha256[:16]}…. Delete it, so that it is downloaded again, or put "
                    f"{_BASE_URL}/{file.source} in its place."
                )
            found[role] = here
    missing = {role: file for role, file in files.items() if role not in found}
    for role, file in missing.items():
        found[role] = _download(file, cache, list(missing.values()))
    return found


def _download(file: _File, folder: Path, missing: list[_File]) -> Path:
    import pooch

    url, target = f"{_BASE_URL}/{file.source}", folder / file.local
    downloader = pooch.HTTPDownloader(progressbar=settings.progress, timeout=_TIMEOUT_S)
    try:
        # Written under a temporary name and moved only when the checksum fits.
        pooch.retrieve(url, f"sha256:{file.sha256}", target.name, target.parent, downloader=downloader)
    except OSError as error:
        needed = "\n".join(f"  {folder / f.local}  <-  {f.source}" for f in missing)
        raise DataError(
            f"Could not download {url} ({error}). Is this machine offline? Then fetch the files from "
            f"https://github.com/{_REPOSITORY} (commit {_COMMIT}) elsewhere and put them here:\n{needed}\n"
            f"or under another folder with the same structure, named with `path=`."
        ) from error
    except ValueError as error:
        raise DataError(f"{url} was downloaded but is not the file expected, so it was not kept: {error}") from error
    return target
