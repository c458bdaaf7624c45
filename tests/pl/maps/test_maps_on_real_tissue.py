from __future__ import annotations

import numpy as np
from spatialdata import SpatialData

import sealst as sl


def test_circles_lie_on_the_tissue(her2st_c2, spots_of):
    # The fixture is shared: work on a copy of the table.
    table = sl.pp.normalize(her2st_c2, copy=True).tables["table"]
    sdata = SpatialData(images=dict(her2st_c2.images), shapes=dict(her2st_c2.shapes), tables={"table": table})
    ax = sl.pl.expression(sdata, "ERBB2", maps="measured").axes[0]
    picture = ax.images[0]
    left, right, bottom, top = picture.get_extent()
    pixels = np.asarray(picture.get_array()).astype(float)
    circles = spots_of(ax)
    assert len(circles.get_offsets()) == 187

    # Glass is bright and grey, stained tissue is not; every pixel is asked whether it is under a spot.
    height, width = pixels.shape[:2]
    x = left + (np.arange(width) + 0.5) * (right - left) / width
    y = top + (np.arange(height) + 0.5) * (bottom - top) / height
    radius = circles.get_widths()[0] / 2
    under = np.zeros((height, width), dtype=bool)
    for cx, cy in circles.get_offsets():
        under |= (x[None, :] - cx) ** 2 + (y[:, None] - cy) ** 2 < radius**2
    stained = (np.ptp(pixels, axis=2) > 25) | (pixels.mean(2) < 190)
    assert stained[under].mean() > 0.85
    # Shifted by a third of the section, the same circles would hit glass.
    assert stained[np.roll(under, width // 3, axis=1)].mean() < 0.75
    # 100 µm across at 0.688 µm per pixel.
    assert 140 < 2 * radius < 150
