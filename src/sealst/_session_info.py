"""What a result was made with: versions and machine, without names of hosts or people."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from sealst._html import as_html
from sealst._version import __version__

#: packages whose versions change results
PACKAGES = (
    *("anndata", "dask", "decoupler", "lightning", "numpy", "pandas", "peft", "scanpy", "scikit-learn", "scipy"),
    *("spatialdata", "squidpy", "timm", "torch", "zarr"),
)


class SessionInfo(dict[str, str]):
    """Names and versions, shown one per line; otherwise a dict, so that JSON can hold it."""

    def __repr__(self) -> str:
        width = max(map(len, self), default=0)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.items())

    def _repr_html_(self) -> str:
        return as_html("Session", dict(self))


def session_info() -> dict[str, str]:
    """Return versions of sealst, Python and the packages that results depend on, the platform and the device.

    Run folders of `sealst.tl.finetune` and evaluations record the same. It names neither the machine nor the user.

    Returns
    -------
    A dict of text: ``"sealst"``, ``"python"``, ``"platform"``, ``"device"`` and one version per package (``"not
    installed"`` where it is absent).

    Examples
    --------
    >>> import sealst as sl
    >>> sorted(sl.session_info())[:3]
    ['anndata', 'dask', 'decoupler']
    """
    info = {"sealst": __version__, "python": platform.python_version()}
    info |= {"platform": f"{platform.system()} {platform.machine()}", "device": _device()}
    return SessionInfo(info | {name: installed_version(name) for name in PACKAGES})


def installed_version(name: str) -> str:
    """Version of a package, or ``"not installed"``."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _device() -> str:
    """Accelerators that torch finds; what is not loaded yet is loaded for it."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names))
    return "mps" if torch.backends.mps.is_available() else "cpu"
