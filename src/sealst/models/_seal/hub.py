"""Models on the model hub: pushed as the folder that `SealModel.save` writes, fetched into the hub's cache on disk."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from sealst._errors import CheckpointError, DataError, SealstError, WeightsError
from sealst._logging import logger, warn
from sealst._validate import listed
from sealst.models._encoders.weights import HTTP_ERRORS, hub_token
from sealst.models._folder import FILES
from sealst.models._intervals import INTERVALS_FILE
from sealst.models._local import LOCAL_FILE, LOCAL_RELIABILITY_FILE
from sealst.models._novelty import NOVELTY_FILE
from sealst.models._seal.net import SealNet
from sealst.models._seal.reliability import RELIABILITY_FILE
from sealst.models._seal.store import needed_files, save_model

_PREFIX = "hf-hub:"
_COMMIT = re.compile(r"[0-9a-f]{40}")
#: all that is ever fetched: names, not patterns, so that nothing else in a repository reaches this machine
_FETCHED = (
    *FILES,
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "base/config.json",
    "base/model.safetensors",
    "history.csv",
    RELIABILITY_FILE,
    NOVELTY_FILE,
    LOCAL_FILE,
    LOCAL_RELIABILITY_FILE,
    INTERVALS_FILE,
    "README.md",
)
#: what a repository may hold beside a model without being taken for something else
_PLAIN = (".gitattributes", ".gitignore", "README.md", "LICENSE", "LICENSE.md", "LICENSE.txt")
_NETWORK: tuple[type[Exception], ...] = (*HTTP_ERRORS, ConnectionError, TimeoutError, LocalEntryNotFoundError)
_FETCHING: tuple[type[Exception], ...] = (*_NETWORK, RuntimeError)
_PUSHING: tuple[type[Exception], ...] = (*_FETCHING, OSError, ValueError)


def push_model(
    model: SealNet, repo_id: str, *, private: bool = True, revision: str | None = None, message: str | None = None
) -> str:
    """Commit a model to a repository of the hub; see `SealModel.push_to_hub`."""
    if not _is_repo(repo_id):
        raise DataError(f"`repo_id` must be 'owner/name', found {repo_id!r}.")
    if (token := _token()) is None:
        raise CheckpointError(
            f"A model is pushed to {repo_id!r} with the token in the environment variable HF_TOKEN, which is not set. "
            "Set it to a token that may write there; tokens of stored logins are not used."
        )
    spec = model.encoder.spec
    if not private and spec.derivatives is False:
        warn(
            f"The licence of {spec.key!r} ({spec.licence}) does not allow derivatives to be passed on. Ask its owners "
            "before an adapter is public."
        )
    with tempfile.TemporaryDirectory(prefix="sealst-") as work:
        folder = save_model(model, Path(work) / "model", include_base=False, overwrite=False)
        try:
            api = HfApi(token=token)
            # Repository and branch are made where they do not exist; some must not be written to.
            api.create_repo(repo_id, private=private, exist_ok=True)
            if private and api.model_info(repo_id, timeout=constants.HF_HUB_ETAG_TIMEOUT).private is False:
                raise CheckpointError(
                    f"{repo_id!r} exists and is public. Pass `private=False` to push to it, or make it private first."
                )
            if revision is not None and not revision.startswith("refs/"):
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            found = set(api.list_repo_files(repo_id, revision=revision))
            if found - set(_PLAIN) and not set(FILES) <= found:
                raise CheckpointError(
                    f"{repo_id!r} holds something else than a sealst model ({listed(sorted(found - set(_PLAIN)), 4)}); "
                    "it is not replaced. Push to a new repository, or remove its files first."
                )
            # Files of the model that was there before go in the same commit; the library keeps .gitattributes.
            info = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=message or f"SEAL model {model.fingerprint}",
                delete_patterns="*",
            )
        except SealstError:
            raise
        except _PUSHING as error:
            raise CheckpointError(f"The model was not pushed to {repo_id!r}: {_reason(error, revision)}.") from error
    logger.info("pushed model %s to %s, commit %s", model.fingerprint, repo_id, info.oid)
    return info.oid


def fetch_model(name: str | Path, *, revision: str | None = None) -> Path:
    """Folder with a model: the one named, or the hub's in the cache on disk; see `SealModel.from_pretrained`."""
    if Path(name).is_dir():
        if revision is not None:
            raise DataError(f"{str(name)!r} is a folder, which has no `revision`. For the hub, say '{_PREFIX}{name}'.")
        return Path(name)
    repo_id = str(name).removeprefix(_PREFIX)
    if isinstance(name, Path) or not _is_repo(repo_id):
        also = "" if isinstance(name, Path) else ", and not 'owner/name' of a model on the hub"
        raise CheckpointError(f"{str(name)!r} is not a folder{also}.")
    # A commit never changes, so there is nothing to ask.
    settled = constants.HF_HUB_OFFLINE or _COMMIT.fullmatch(revision or "")
    if settled and (folder := _cached(repo_id, revision)) is not None:
        logger.info("model %s, commit %s, from the cache", repo_id, folder.name)
        return folder
    try:
        token = _token() or False
        # Asked first, since a snapshot comes from the cache without a word when the hub refuses or is away.
        info = HfApi(token=token).model_info(repo_id, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(_FETCHED), token=token))
    except SealstError:
        raise
    except _FETCHING as error:
        reason = _reason(error, revision)
        # What the hub answered is an error; where it did not answer, there may be a copy.
        if not _unreachable(error):
            raise CheckpointError(f"The model {repo_id!r} could not be fetched: {reason}.") from error
        if (copied := _cached(repo_id, revision)) is None:
            raise CheckpointError(
                f"The model {repo_id!r} could not be fetched: {reason}, and the cache on this machine has no complete "
                "copy of it. Load a local folder with `sl.models.load`, or try again with a network."
            ) from error
        logger.warning("%s: %s; commit %s from the cache is used", repo_id, reason, copied.name)
        return copied
    if folder.name == info.sha:
        logger.info("model %s, commit %s", repo_id, folder.name)
    else:
        logger.warning("%s: commit %s is used, the hub had %s", repo_id, folder.name, info.sha)
    if missing := _missing(folder):
        raise CheckpointError(f"{repo_id!r} on the hub is not a complete sealst model: it lacks {listed(missing)}.")
    return folder


def _cached(repo_id: str, revision: str | None) -> Path | None:
    try:
        folder = snapshot_download(repo_id, revision=revision, allow_patterns=list(_FETCHED), local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    return None if _missing(Path(folder)) else Path(folder)


def _missing(folder: Path) -> list[str]:
    return [name for name in needed_files(folder) if not (folder / name).is_file()]


def _is_repo(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def _token() -> str | None:
    try:
        return hub_token()
    except WeightsError as error:
        raise CheckpointError(str(error)) from None


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _unreachable(error: Exception) -> bool:
    status = _status(error)
    return isinstance(error, _NETWORK) if status is None else status >= 500


def _reason(error: Exception, revision: str | None) -> str:
    """What went wrong, in our own words: messages of the network layers may quote the request."""
    status = _status(error)
    token = "the token in HF_TOKEN" if _token() else "requests without a token (HF_TOKEN is not set)"
    kinds: list[tuple[bool, str]] = [
        (isinstance(error, OfflineModeIsEnabled), "HF_HUB_OFFLINE is set"),
        (isinstance(error, GatedRepoError), "it is gated, and access has not been granted"),
        (isinstance(error, RevisionNotFoundError), f"it has no revision {revision!r}"),
        (isinstance(error, RepositoryNotFoundError), f"it does not exist, or it is hidden: the hub refuses {token}"),
        (status == 401, f"the hub refuses {token}"),
        (
            status == 403,
            "the token in HF_TOKEN does not give the right to it" if _token() else f"the hub refuses {token}",
        ),
        (status is not None, f"the hub answered with status {status}"),
        (_unreachable(error), f"the hub cannot be reached ({type(error).__name__})"),
    ]
    return next((text for holds, text in kinds if holds), type(error).__name__)
