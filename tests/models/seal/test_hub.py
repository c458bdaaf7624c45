"""Models pushed to and fetched from a hub: a real server on this machine, and processes that talk to it.

`hub_session.py` does the talking and reports; the tests read the reports. It runs in three ways: `main`, with the
client as it is installed; `offline`, with the cache that `main` left; and (slow, for one more process) `lfs`, with the
protocol that large files take in clients without the newer one.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import pytest

import sealst as sl

TOKENS = ("hf_writerOfThisTest", "hf_readerOfThisTest", "hf_storedByALogin", "hf_wrongInThisTest")
STAGES = ["main", pytest.param("lfs", marks=pytest.mark.slow)]
STORED = ["README.md", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"]
STORED += ["base.json", "config.json", "heads.safetensors", "panel.tsv"]


def start(work: Path, stage: str, home: str, **variables: str) -> Popen[bytes]:
    (work / home).mkdir(exist_ok=True)
    # A login that left its token: it must not be used.
    (work / home / "token").write_text("hf_storedByALogin")
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | variables
    env |= {"HF_HOME": str(work / home), "PYTHONPATH": str(Path(sl.__file__).parents[1]), "SEALST_WEIGHTS": ""}
    script = Path(__file__).with_name("hub_session.py")
    with (work / f"out-{stage}.txt").open("wb") as out:
        return Popen([sys.executable, script, work, stage], env=env, stdin=PIPE, stdout=out, stderr=out, cwd=work)


def finish(work: Path, stage: str, process: Popen[bytes]) -> dict[str, Any]:
    with process:  # waits for it, after closing its input
        try:
            process.communicate(timeout=240)
        finally:
            process.kill()
    assert process.returncode == 0, (work / f"out-{stage}.txt").read_text()[-4000:]
    return json.loads((work / f"report-{stage}.json").read_text())


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def reports(work) -> dict[str, Any]:
    first, second = start(work, "main", "home"), start(work, "offline", "home", HF_HUB_OFFLINE="1")
    try:
        main = finish(work, "main", first)
        return {"main": main, "offline": finish(work, "offline", second)}
    finally:
        second.kill()


@pytest.fixture(scope="module")
def main(reports) -> dict[str, Any]:
    return reports["main"]


@pytest.fixture(scope="module")
def lfs(work) -> dict[str, Any]:
    return finish(work, "lfs", start(work, "lfs", "home-lfs", HF_HUB_DISABLE_XET="1"))


# -- round trip -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stage", STAGES)
def test_pushed_model_comes_back_the_same(stage, request):
    first = request.getfixturevalue(stage)["first"]
    assert first["same"]
    assert first["same_with_prefix"]
    assert first["private"] is True
    assert first["commit_is_head"]
    assert first["files"] == sorted([".gitattributes", *STORED, "base/config.json", "base/model.safetensors"])


@pytest.mark.parametrize("stage", STAGES)
def test_second_model_replaces_the_first_in_one_commit(stage, request):
    second = request.getfixturevalue(stage)["second"]
    assert second["differs"]
    assert second["same"]
    # Neither base weights that are published elsewhere, nor anything of the first model.
    assert second["files"] == [".gitattributes", *second["saved"]]
    assert second["saved"] == STORED
    assert second["titles"] == ["initial", "first model", f"SEAL model {second['fingerprint']}"]


@pytest.mark.parametrize("stage", STAGES)
def test_commit_is_what_was_pushed_then(stage, request):
    second = request.getfixturevalue(stage)["second"]
    assert second["first_by_commit"]
    assert second["requests_for_a_cached_commit"] == 0
    assert second["unchanged"], "pushing the same model again makes no commit"


def test_log_names_repository_and_commit(main):
    pushed, fetched = main["first"]["log"], main["first"]["fetch_log"]
    assert re.fullmatch(r"INFO pushed model [0-9a-f]{16} to lab/seal, commit [0-9a-f]{40}", pushed[0])
    assert set(fetched) == {f"INFO model lab/seal, commit {pushed[0][-40:]}"}


def test_branch_is_made_and_main_stays(main):
    branch = main["branch"]
    assert branch["main"] == [".gitattributes"]
    assert branch["trial"] == len(STORED) + 3
    assert branch["same"]
    assert "it has no revision 'other'" in branch["no_revision"]
    assert branch["main_is_no_model"].startswith(
        "CheckpointError: 'lab/branched' on the hub is not a complete sealst model: it lacks 'config.json'"
    )


# -- what is not done -------------------------------------------------------------------------------------------------
def test_private_by_default(main):
    assert main["branch"]["private"] is False
    assert "'lab/branched' exists and is public. Pass `private=False`" in main["branch"]["public_refused"]


def test_repository_of_something_else_is_not_replaced(main):
    other = main["other"]
    assert "'lab/other' holds something else than a sealst model ('config.json', 'run.py')" in other["error"]
    assert other["untouched"] == [".gitattributes", "LICENSE", "config.json", "run.py"]
    assert "'lab/other' on the hub is not a complete sealst model: it lacks 'panel.tsv'" in other["not_a_model"]


def test_only_files_of_a_model_are_fetched(main):
    assert main["other"]["fetched"] == ["config.json"]
    assert main["extras"] == sorted(Path(name).name for name in STORED)


def test_public_adapter_of_a_base_without_derivatives_warns(main):
    assert len(main["licence"]) == 1
    assert main["licence"][0].startswith("The licence of 'uni' (CC-BY-NC-ND-4.0) does not allow derivatives")


# -- names ------------------------------------------------------------------------------------------------------------
def test_folder_comes_before_the_hub(main):
    folder = main["folder"]
    assert folder["wins"]
    assert folder["path"]
    assert not folder["prefix"], "with the prefix, the hub's model"
    assert "'lab/seal' is a folder, which has no `revision`. For the hub, say 'hf-hub:lab/seal'" in folder["revision"]


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "./lab", "lab/"])
def test_names_of_neither(name, main):
    assert main[f"name {name!r}"].startswith(f"CheckpointError: {name!r} is not a folder, and not 'owner/name' of a")
    assert main[f"repo {name!r}"].startswith(f"DataError: `repo_id` must be 'owner/name', found {name!r}.")


def test_a_path_never_means_the_hub(main):
    assert main["path that is not there"].startswith("CheckpointError: 'lab/seal' is not a folder.")


# -- tokens and refusals ----------------------------------------------------------------------------------------------
def test_pushing_needs_a_token_before_anything_is_done(main):
    for case in ("push without a token", "push with an empty token"):
        assert "with the token in the environment variable HF_TOKEN, which is not set. Set it" in main[case]
    for case in ("push with an odd token", "fetch with an odd token"):
        assert main[case].startswith("CheckpointError: HF_TOKEN holds spaces, line breaks")
    assert main["requests without a token"] == 0
    assert main["newline at the end"] == ""


def test_public_model_needs_no_token_and_none_of_a_login_is_used(main):
    assert main["public without a token"] == ""
    assert main["authorization without a token"] == []


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("push with a wrong token", "was not pushed to 'lab/new': the hub refuses the token in HF_TOKEN"),
        ("push with a reader's token", "was not pushed to 'lab/new': the token in HF_TOKEN does not give the right to"),
        (
            "push to a reader's model",
            "was not pushed to 'lab/seal': the token in HF_TOKEN does not give the right to it",
        ),
        (
            "private without a token",
            "'lab/seal' could not be fetched: it does not exist, or it is hidden: the hub refuses",
        ),
        ("fetch with a wrong token", "'lab/seal' could not be fetched: the hub refuses the token in HF_TOKEN"),
        ("fetch what is not there", "'lab/none' could not be fetched: it does not exist, or it is hidden"),
        ("push 401", "was not pushed to 'lab/new': the hub refuses the token in HF_TOKEN"),
        ("push 403", "was not pushed to 'lab/new': the token in HF_TOKEN does not give the right to it"),
        ("push 404", "was not pushed to 'lab/new': the hub answered with status 404"),
        ("push 500", "was not pushed to 'lab/new': the hub answered with status 500"),
        ("fetch 401", "'lab/branched' could not be fetched: the hub refuses the token in HF_TOKEN"),
        ("fetch 403", "'lab/branched' could not be fetched: the token in HF_TOKEN does not give the right to it"),
        ("fetch 404", "'lab/branched' could not be fetched: the hub answered with status 404"),
    ],
)
def test_refusals_name_repository_and_reason(case, text, main):
    assert main[case].startswith("CheckpointError: The model ")
    assert text in main[case]
    assert not main[case].endswith("[cause: none]"), "the original is chained"


def test_token_is_nowhere_but_in_its_header(main, work):
    assert main["token elsewhere"] == []
    assert {"Bearer hf_readerOfThisTest", "Bearer hf_writerOfThisTest"} <= set(main["authorization"])
    assert "Bearer hf_storedByALogin" not in main["authorization"]
    said = {path for path in work.rglob("*") if path.is_file()} - {work / "report-main.json", work / "home" / "token"}
    said = {path for path in said if path.name != "report-lfs.json" and path.parent.name != "home-lfs"}
    assert "Traceback" in (work / "out-main.txt").read_text(), "libraries log everything there, and errors their causes"
    assert [p for p in said if any(token.encode() in p.read_bytes() for token in TOKENS)] == []


# -- no hub -----------------------------------------------------------------------------------------------------------
def test_cached_model_is_used_with_a_warning_while_the_hub_is_down(main):
    down = main["down"]
    assert down["fingerprint"] == main["second"]["fingerprint"]
    assert len(down["log"]) == 1
    # By the library under the client: `requests` names it one way, `httpx` the other.
    why = r"WARNING lab/seal: the hub cannot be reached \(Connect(ion)?Error\)"
    assert re.fullmatch(rf"{why}; commit {down['head']} from the cache is used", down["log"][0])
    assert main["fetch 503"] == ""
    assert re.match(r"WARNING lab/branched: the hub answered with status 503; commit", main["fetch 503 log"][0])


def test_what_is_not_cached_while_the_hub_is_down(main):
    for case, name in (("empty", "lab/never"), ("other_branch", "lab/seal")):
        assert f"The model '{name}' could not be fetched: the hub cannot be reached" in main["down"][case]
        assert "has no complete copy of it. Load a local folder with `sl.models.load`" in main["down"][case]
    assert "was not pushed to 'lab/seal': the hub cannot be reached" in main["down"]["push"]


def test_offline(reports):
    offline, main = reports["offline"], reports["main"]
    assert offline["fingerprint"] == main["second"]["fingerprint"]
    assert offline["log"] == [f"INFO model lab/seal, commit {main['down']['head']}, from the cache"]
    assert "'lab/never' could not be fetched: HF_HUB_OFFLINE is set, and the cache" in offline["empty"]
    assert "was not pushed to 'lab/seal': HF_HUB_OFFLINE is set" in offline["push"]
