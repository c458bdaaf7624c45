"""One real picture in the formats that slides come in, written by other libraries: the same tile from each."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import sealst as sl
from sealst._data.crops.reader import read_crops
from sealst._section import image_levels

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("openslide")
pytest.importorskip("wsidata")

MPP = 0.688
SIDE = 1536
#: a tile of 112 µm inside the picture, in pixels
TILE = np.array([[600.0, 700.0, 600 + 112 / MPP, 700 + 112 / MPP]])


@pytest.fixture(scope="module")
def picture(shared_dir: Path) -> np.ndarray:
    """A piece of section C2 of her2st, decoded by Pillow."""
    with Image.open(shared_dir / "data" / "her2st" / "C2" / "5714_HE_BT_C2.jpg") as whole:
        return np.asarray(whole.crop((3600, 3600, 3600 + SIDE, 3600 + SIDE)))


def levels_of(picture: np.ndarray) -> list[np.ndarray]:
    half = np.asarray(Image.fromarray(picture).resize((SIDE // 2, SIDE // 2), Image.Resampling.BOX))
    return [picture, half]


def pyramidal_tiff(path: Path, picture: np.ndarray) -> Path:
    resolution = {"resolution": (1e4 / MPP, 1e4 / MPP), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        for i, level in enumerate(levels_of(picture)):
            file.write(
                level, tile=(256, 256), photometric="rgb", compression="jpeg", compressionargs={"level": 92},
                subfiletype=int(i > 0), metadata=None, **(resolution if i == 0 else {}),
            )  # fmt: skip
    return path


def ome_tiff(path: Path, picture: np.ndarray) -> Path:
    units = {"PhysicalSizeX": MPP, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": MPP, "PhysicalSizeYUnit": "µm"}
    options = {"tile": (512, 512), "photometric": "rgb", "compression": "zlib"}
    with tifffile.TiffWriter(path, ome=True) as file:
        full, half = levels_of(picture)
        file.write(full, subifds=1, metadata={"axes": "YXS"} | units, **options)
        file.write(half, subfiletype=1, **options)
    return path


def jpeg2000(path: Path, picture: np.ndarray) -> Path:
    """Slide as Aperio's scanners compress it."""
    head = f"Aperio Image Library v12.0.0\r\n{SIDE}x{SIDE} (256x256) J2K/KDU Q=70|AppMag = 20|MPP = {MPP}"
    tifffile.imwrite(
        path, picture, tile=(256, 256), photometric="rgb", compression="APERIO_JP2000_RGB",
        compressionargs={"level": 90}, description=head, metadata=None, software=False,
    )  # fmt: skip
    return path


def dicom(folder: Path, picture: np.ndarray) -> Path:
    """DICOM slide of JPEG frames, one file per level."""
    folder.mkdir()
    for number, level in enumerate(levels_of(picture)):
        dicom_level(folder / f"{number}.dcm", level, MPP * 2**number, number)
    return folder


def dicom_level(path: Path, image: np.ndarray, mpp: float, number: int) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit, generate_uid

    def item(**values: object) -> Dataset:
        one = Dataset()
        for name, value in values.items():
            setattr(one, name, value)
        return one

    def frame(y: int, x: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(image[y : y + 256, x : x + 256]).save(buffer, "jpeg", quality=92, subsampling=0)
        return buffer.getvalue()

    size, seed = image.shape[0], ["sealst"]
    study, series, frame_of = (generate_uid(entropy_srcs=[*seed, name]) for name in ("study", "series", "frame"))
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[*seed, str(number)])
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = study, series, frame_of
    ds.Modality, ds.PatientID, ds.PatientName = "SM", "p", "p"
    ds.ImageType = [
        "ORIGINAL" if number == 0 else "DERIVED",
        "PRIMARY",
        "VOLUME",
        "NONE" if number == 0 else "RESAMPLED",
    ]
    ds.DimensionOrganizationType = "TILED_FULL"
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "YBR_FULL_422", 0
    ds.Rows = ds.Columns = 256
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.TotalPixelMatrixRows = ds.TotalPixelMatrixColumns = size
    ds.TotalPixelMatrixFocalPlanes = ds.NumberOfOpticalPaths = 1
    ds.ImagedVolumeWidth = ds.ImagedVolumeHeight = size * mpp / 1e3
    ds.ImagedVolumeDepth = 0.001
    ds.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
    ds.TotalPixelMatrixOriginSequence = [item(XOffsetInSlideCoordinateSystem=0, YOffsetInSlideCoordinateSystem=0)]
    ds.OpticalPathSequence = [item(OpticalPathIdentifier="0")]
    measures = item(PixelSpacing=[mpp / 1e3, mpp / 1e3], SliceThickness=0.001)
    ds.SharedFunctionalGroupsSequence = [item(PixelMeasuresSequence=[measures])]
    frames = [frame(y, x) for y in range(0, size, 256) for x in range(0, size, 256)]
    ds.NumberOfFrames, ds.InstanceNumber = len(frames), number + 1
    ds.PixelData = encapsulate(frames)
    ds["PixelData"].VR = "OB"
    ds.save_as(path, enforce_file_format=True)


#: how each is written, and the mean difference of a value of 0 to 255 that its compression may bring
FORMATS = {
    "pyramid.tif": (pyramidal_tiff, 3.0),
    "slide.ome.tif": (ome_tiff, 0.0),
    "aperio.svs": (jpeg2000, 3.0),
    "dicom": (dicom, 3.0),
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_tile_from_every_format(name: str, picture: np.ndarray, tmp_path: Path) -> None:
    write, tolerance = FORMATS[name]
    slide = sl.io.open_image(write(tmp_path / name, picture))
    assert slide.shape == (SIDE, SIDE)
    assert slide.mpp == pytest.approx(MPP, rel=1e-3)
    for px, level in ((224, None), (64, None), (64, 0)):
        expected = read_crops(
            [np.moveaxis(p, 2, 0) for p in levels_of(picture)[: len(slide.levels)]], TILE, px, level=level
        )
        found = read_crops(slide.levels, TILE, px, level=level)
        difference = np.abs(found.astype(float) - expected)
        assert difference.mean() <= tolerance, px
        if tolerance:
            # Neither shifted by a pixel nor with channels interchanged: as like as compression allows.
            shifted = np.abs(np.roll(found, 1, axis=2).astype(float) - expected).mean()
            assert difference.mean() < 0.7 * shifted, px


def test_dicom_is_read_alike_by_wsidicom(picture: np.ndarray, tmp_path: Path) -> None:
    wsidicom = pytest.importorskip("wsidicom")
    folder = dicom(tmp_path / "dicom", picture)
    with wsidicom.WsiDicom.open(folder) as other:
        seen = np.asarray(other.read_region((512, 512), 0, (300, 200)).convert("RGB"))
    ours = np.moveaxis(np.asarray(sl.io.open_image(folder).levels[0][:, 512:712, 512:812]), 0, 2)
    assert np.abs(seen.astype(int) - ours).mean() < 1


def test_tiff_is_read_alike_by_tiffslide(picture: np.ndarray, tmp_path: Path) -> None:
    tiffslide = pytest.importorskip("tiffslide")
    path = pyramidal_tiff(tmp_path / "pyramid.tif", picture)
    seen = np.asarray(tiffslide.TiffSlide(path).read_region((512, 512), 0, (300, 200)).convert("RGB"))
    ours = np.moveaxis(np.asarray(sl.io.open_image(path).levels[0][:, 512:712, 512:812]), 0, 2)
    np.testing.assert_array_equal(ours, seen)


def test_tiles_and_tissue_do_not_depend_on_the_format(picture: np.ndarray, tmp_path: Path) -> None:
    tiles = {}
    for name, (write, _) in FORMATS.items():
        sdata = sl.io.read_wsi(write(tmp_path / name, picture), section="s")
        assert all(hasattr(level.data, "dask") for level in image_levels(sdata.images["s_he"]))
        sl.pp.tile(sdata, crop_um=56, thumbnail=False)
        tiles[name] = sdata.tables["table"].obs.set_index("spot_id")["tissue_fraction"]
    first = tiles.pop("slide.ome.tif")
    assert len(first) > 50
    for name, other in tiles.items():
        shared = first.index.intersection(other.index)
        assert len(shared) > 0.95 * max(len(first), len(other)), name
        assert np.abs(first[shared] - other[shared]).mean() < 0.05, name
