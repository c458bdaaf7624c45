"""Run as a program by `test_hub.py`: pushes and fetches models against a hub of its own, and prints what happened.

A process of its own, since the hub's client reads its address, its cache and whether it is offline when it is imported.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from hub_server import Hub

WORK, STAGE = Path(sys.argv[1]), sys.argv[2]
WRITER, READER, STORED = "hf_writerOfThisTest", "hf_readerOfThisTest", "hf_storedByALogin"
# A name, since a traceback shows the line of the call.
WRONG = "hf_wrongInThisTest"
HUB = Hub(WORK / f"server-{STAGE}", writer=WRITER, reader=READER, lfs=STAGE == "lfs")
if STAGE != "offline":
    HUB.start()
    os.environ["HF_ENDPOINT"] = HUB.url

import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

import sealst as sl  # noqa: E402
from sealst._core.seeds import seeded  # noqa: E402
from sealst.models import CropSpec, GeneVAEParams, HeadParams, LoraParams, SealModel  # noqa: E402
from sealst.models._encoders.build import build_from_spec  # noqa: E402
from sealst.models._encoders.records import REGISTRY  # noqa: E402

torch.set_num_threads(1)
REPORT: dict[str, Any] = {}
CROPS = np.random.default_rng(2).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
RECORD = REGISTRY["uni"]
RECORD = replace(
    RECORD,
    model_args=dict(RECORD.model_args) | {"embed_dim": 48, "depth": 2, "num_heads": 2, "img_size": 32},
    width=48,
    dim=48,
    n_blocks=2,
    input_px=32,
)


class Collector(logging.Handler):
    """Keeps what sealst logs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")

    def take(self) -> list[str]:
        lines, self.lines = self.lines, []
        return lines


LOG = Collector()


def make_model(seed: int, weights: Path | None = None) -> SealModel:
    """A small model; on random weights, which are stored with it, or on published ones, which are not."""
    rng = np.random.default_rng(0)
    panel = sl.GenePanel(tuple(f"G{i}" for i in range(6)), rng.uniform(0.5, 2, 6), rng.uniform(0.5, 1, 6))
    with seeded(seed):
        encoder = build_from_spec(RECORD, weights=weights, pretrained=weights is not None, seed=seed)
        made = SealModel(
            encoder,
            panel,
            crop=CropSpec(16.0, 32),
            adapter=LoraParams(n_blocks=1),
            gene_encoder=GeneVAEParams(hidden=(8,)),
            head=HeadParams(8),
        )
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)
    return made


def error_of(call: Callable[[], object]) -> str:
    """An error's class and text; '' when there is none."""
    try:
        call()
    except sl.SealstError as error:
        # The whole chain is shown, as to a user who does not catch it; see `test_token_is_nowhere_but_in_its_header`.
        logging.exception("refused")
        chained = type(error.__cause__).__name__ if error.__cause__ else "none"
        return f"{type(error).__name__}: {error} [cause: {chained}]"
    return ""


def same(a: SealModel, b: SealModel) -> bool:
    return a.fingerprint == b.fingerprint and np.array_equal(a.embed_images(CROPS), b.embed_images(CROPS))


def fetch(name: str, **kwargs: Any) -> SealModel:
    return SealModel.from_pretrained(name, device="cpu", **kwargs)


def round_trip() -> None:
    first, weights = make_model(1), WORK / f"uni-{STAGE}.safetensors"
    save_file(build_from_spec(RECORD, pretrained=False, seed=9).vit.state_dict(), weights)
    second = make_model(2, weights)
    second.save(WORK / f"saved-{STAGE}")
    commit = first.push_to_hub("lab/seal", message="first model")
    repo = HUB.repos["lab/seal"]
    REPORT["first"] = {
        "log": LOG.take(),
        "commit_is_head": commit == repo.branches["main"],
        "private": repo.private,
        "files": sorted(repo.files()),
        "same": same(fetch("lab/seal"), first),
        "same_with_prefix": same(fetch("hf-hub:lab/seal"), first),
        "fetch_log": LOG.take(),
        "sent": [r["path"] for r in HUB.requests if r["method"] == "GET" and "/resolve/" in r["path"]],
    }
    again = second.push_to_hub("lab/seal")
    REPORT["second"] = {
        "files": sorted(repo.files()),
        "saved": sorted(p.relative_to(WORK / f"saved-{STAGE}").as_posix() for p in files_of(f"saved-{STAGE}")),
        "titles": repo.titles,
        "fingerprint": second.fingerprint,
        "same": same(fetch("lab/seal", weights=weights), second),
        "differs": second.fingerprint != first.fingerprint,
        "first_by_commit": same(fetch("lab/seal", revision=commit), first),
        "unchanged": second.push_to_hub("lab/seal") == again,
    }
    before = len(HUB.requests)
    fetch("lab/seal", revision=commit)
    REPORT["second"]["requests_for_a_cached_commit"] = len(HUB.requests) - before


def files_of(name: str) -> list[Path]:
    return [p for p in (WORK / name).rglob("*") if p.is_file()]


def branches_and_visibility() -> None:
    model = make_model(3)
    model.push_to_hub("lab/branched", private=False, revision="trial")
    LOG.take()
    REPORT["branch"] = {
        "main": sorted(HUB.repos["lab/branched"].files()),
        "trial": len(HUB.repos["lab/branched"].files("trial")),
        "private": HUB.repos["lab/branched"].private,
        "same": same(fetch("lab/branched", revision="trial"), model),
        "main_is_no_model": error_of(lambda: fetch("lab/branched")),
        "no_revision": error_of(lambda: fetch("lab/branched", revision="other")),
        "public_refused": error_of(lambda: model.push_to_hub("lab/branched")),
    }
    other = HUB.make("lab/other", private=True, files={"config.json": b"{}", "run.py": b"1/0", "LICENSE": b"MIT"})
    REPORT["other"] = {
        "error": error_of(lambda: model.push_to_hub("lab/other")),
        "untouched": sorted(other.files()),
        "not_a_model": error_of(lambda: fetch("lab/other")),
        "fetched": sorted(p.name for p in (WORK / "home").rglob("models--lab--other/snapshots/*/*")),
    }
    # Executable things beside a model stay on the hub.
    files = {name: HUB.get(digest) for name, digest in HUB.repos["lab/seal"].files().items()}
    HUB.make("lab/extras", private=True, files=files | {"modeling.py": b"1/0", "base/pytorch_model.bin": b"x"})
    fetch("lab/extras", weights=WORK / f"uni-{STAGE}.safetensors")
    REPORT["extras"] = sorted(p.name for p in (WORK / "home").rglob("models--lab--extras/snapshots/**/*.*"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_model(2, WORK / f"uni-{STAGE}.safetensors").push_to_hub("lab/adapter", private=False)
    REPORT["licence"] = [str(w.message) for w in caught if issubclass(w.category, sl.SealstWarning)]


def folders() -> None:
    model = make_model(4)
    model.save(WORK / "cwd" / "lab" / "seal")
    os.chdir(WORK / "cwd")
    REPORT["folder"] = {
        "wins": same(fetch("lab/seal"), model),
        "path": same(fetch(WORK / "cwd" / "lab" / "seal"), model),
        "prefix": same(fetch("hf-hub:lab/seal", weights=WORK / f"uni-{STAGE}.safetensors"), model),
        "revision": error_of(lambda: fetch("lab/seal", revision="main")),
    }
    os.chdir(WORK)
    for name in ("nowhere", "a/b/c", "./lab", "lab/"):
        REPORT[f"name {name!r}"] = error_of(lambda n=name: fetch(n))
        REPORT[f"repo {name!r}"] = error_of(lambda n=name: model.push_to_hub(n))
    REPORT["path that is not there"] = error_of(lambda: SealModel.from_pretrained(Path("lab/seal")))


def with_token(token: str | None, call: Callable[[], object]) -> str:
    os.environ.pop("HF_TOKEN", None)
    if token is not None:
        os.environ["HF_TOKEN"] = token
    try:
        return error_of(call)
    finally:
        os.environ["HF_TOKEN"] = WRITER


def refusals() -> None:
    model = make_model(5)
    push, get = (lambda: model.push_to_hub("lab/new")), (lambda: fetch("lab/branched", revision="trial"))
    start = len(HUB.requests)
    REPORT["push without a token"] = with_token(None, push)
    REPORT["push with an empty token"] = with_token(" ", push)
    REPORT["push with an odd token"] = with_token(f"{WRITER}\nX", push)
    REPORT["fetch with an odd token"] = with_token(f"{WRITER}\nX", get)
    REPORT["requests without a token"] = len(HUB.requests) - start
    REPORT["push with a wrong token"] = with_token(WRONG, push)
    REPORT["push with a reader's token"] = with_token(READER, push)
    REPORT["push to a reader's model"] = with_token(READER, lambda: model.push_to_hub("lab/seal"))
    REPORT["newline at the end"] = with_token(WRITER + "\n", lambda: model.push_to_hub("lab/newline"))
    start = len(HUB.requests)
    REPORT["public without a token"] = with_token(None, get)
    REPORT["authorization without a token"] = sorted(
        {v for r in HUB.requests[start:] for k, v in r["headers"].items() if k.lower() == "authorization"}
    )
    REPORT["private without a token"] = with_token(None, lambda: fetch("lab/seal"))
    REPORT["fetch with a wrong token"] = with_token(WRONG, lambda: fetch("lab/seal"))
    REPORT["fetch what is not there"] = error_of(lambda: fetch("lab/none"))
    for status in (401, 403, 404, 500):
        HUB.status = status
        REPORT[f"push {status}"] = error_of(push)
        if status < 500:
            # A cached copy is no answer to a refusal.
            REPORT[f"fetch {status}"] = error_of(get)
    LOG.take()
    HUB.status = 503
    REPORT["fetch 503"] = error_of(get)
    REPORT["fetch 503 log"] = LOG.take()
    HUB.status = None


def down() -> None:
    weights = WORK / f"uni-{STAGE}.safetensors"
    head = HUB.repos["lab/seal"].branches["main"]
    HUB.stop()
    LOG.take()
    REPORT["down"] = {
        "fingerprint": fetch("lab/seal", weights=weights).fingerprint,
        "log": LOG.take(),
        "head": head,
        "empty": error_of(lambda: fetch("lab/never")),
        "other_branch": error_of(lambda: fetch("lab/seal", revision="other")),
        "push": error_of(lambda: make_model(6).push_to_hub("lab/seal")),
    }


def offline() -> None:
    # Started together with the session that fills the cache; the end of the input says that it is full.
    sys.stdin.read()
    os.environ["HF_TOKEN"] = WRITER
    REPORT["fingerprint"] = fetch("lab/seal", weights=WORK / "uni-main.safetensors").fingerprint
    REPORT["log"] = LOG.take()
    REPORT["empty"] = error_of(lambda: fetch("lab/never"))
    REPORT["push"] = error_of(lambda: make_model(6).push_to_hub("lab/seal"))


def main() -> None:
    # All that any library says goes to the standard error, where tokens are looked for.
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    logging.getLogger("sealst").addHandler(LOG)
    if STAGE == "offline":
        offline()
    else:
        os.environ["HF_TOKEN"] = WRITER
        round_trip()
        if STAGE == "main":
            branches_and_visibility()
            folders()
            refusals()
            down()
    tokens = (WRITER, READER, STORED)
    seen, elsewhere = set(), []
    for request in HUB.requests:
        headers = {k.lower(): v for k, v in request["headers"].items()}
        seen.add(headers.pop("authorization", "none"))
        text = f"{request['path']} {headers}".encode() + request["body"]
        elsewhere += [request["path"] for token in tokens if token.encode() in text]
    REPORT["authorization"], REPORT["token elsewhere"] = sorted(seen), elsewhere
    (WORK / f"report-{STAGE}.json").write_text(json.dumps(REPORT), encoding="utf-8")


main()
