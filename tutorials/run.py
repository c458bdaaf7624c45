"""Run notebooks from top to bottom and store their outputs: `python tutorials/run.py 02 03`, or all without a name.

A notebook is written only when every cell ran. Folders of this machine are replaced in what is stored, and pictures are
stored in the smaller of PNG and JPEG.
"""

from __future__ import annotations

import base64
import io
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TIMEOUT_S = 3600
JPEG_QUALITY = 70
#: most pixels across; pages show a figure about half as wide
MOST_PX = 2000


def folders() -> dict[str, str]:
    """What stands in outputs for folders of this machine, the longest first."""
    shared = os.environ.get("SEALST_SHARED", str(ROOT.parent / "shared"))
    cache = os.environ.get("SEALST_CACHE", str(Path.home() / ".cache" / "sealst"))
    found = {shared: "../shared", cache: "~/.cache/sealst", f"{ROOT}/src/": "", f"{ROOT}/": "", str(Path.home()): "~"}
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def cleaned(value: object) -> object:
    """Outputs without the folders of this machine; pictures stay as they are."""
    if isinstance(value, str):
        for folder, shown in folders().items():
            value = value.replace(folder, shown)
        return re.sub(r"\x1b\[[\d;]*m|\S*/site-packages/", "", value)
    if isinstance(value, list):
        return [cleaned(item) for item in value]
    if isinstance(value, dict):
        return {k: item if k.startswith("image/") else cleaned(item) for k, item in value.items()}
    return value


def merged(outputs: list) -> list:
    """Lines that one stream wrote after the other, as one output."""
    out: list = []
    for output in outputs:
        if out and output["output_type"] == "stream" == out[-1]["output_type"] and output["name"] == out[-1]["name"]:
            out[-1]["text"] += output["text"]
        else:
            out.append(output)
    return out


def smaller(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """An output whose picture is stored in the smaller format, shown as wide as before.

    The height is left to the browser: a stated one distorts pictures that are narrowed to a small screen.
    """
    stored = output.get("data", {}).pop("image/png", None)
    if stored is None:
        return output
    picture = Image.open(io.BytesIO(base64.b64decode(stored))).convert("RGB")
    shown = output["metadata"].pop("image/png", {}).get("width", picture.width)
    if picture.width > MOST_PX:
        size = MOST_PX, round(picture.height * MOST_PX / picture.width)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    encoded = {}
    for mime, options in (("image/png", {"optimize": True}), ("image/jpeg", {"quality": JPEG_QUALITY})):
        buffer = io.BytesIO()
        picture.save(buffer, mime.removeprefix("image/"), **options)
        encoded[mime] = base64.b64encode(buffer.getvalue()).decode()
    mime = min(encoded, key=lambda key: len(encoded[key]))
    output["data"][mime] = encoded[mime]
    output["metadata"][mime] = {"width": shown}
    return output


def run(path: Path) -> float:
    """Run one notebook in an empty folder and store it; returns the seconds that it took."""
    # Another backend would leave the notebook without pictures.
    os.environ.pop("MPLBACKEND", None)
    notebook = nbformat.read(path, 4)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=TIMEOUT_S, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell["metadata"] = {"tags": cell["metadata"]["tags"]} if cell["metadata"].get("tags") else {}
        if cell["cell_type"] == "code":
            outputs = [nbformat.from_dict(cleaned(output)) for output in merged(cell["outputs"])]
            cell["outputs"] = [smaller(output) for output in outputs]
    nbformat.write(notebook, path)
    return time.perf_counter() - started


def main() -> None:
    """Run the notebooks whose names begin as the arguments say."""
    names = tuple(sys.argv[1:]) or ("",)
    for path in sorted(HERE.glob("*.ipynb")):
        if path.stem.startswith(names):
            sys.stdout.write(f"{path.name}: {run(path):.0f} s\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
