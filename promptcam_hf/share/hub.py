"""Checkpoints to the Hub: one commit, all or nothing."""

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from ..files import write_atomically
from .model_card import (
    CARD,
    add_metadata,
    decode_model_card,
    own_text,
    read_config,
    read_model_card,
    renew_model_card,
)

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
# What a push takes along and, where an earlier push left one that is no longer here, takes away; nothing else
OUR_FILES = (
    "config.json",
    "preprocessor_config.json",
    "*_promptcam.py",
    WEIGHTS,
    WEIGHTS_INDEX,
    "model-?????-of-?????.safetensors",
    "recipe.yaml",
    "training_log.jsonl",
    "evaluation/results.json",
    "evaluation/traits.png",
    "evaluation/per_class.csv",
    "evaluation/confusions.csv",
    "evaluation/confusions.png",
)
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


def push(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    license: str | None = None,
    token: str | None = None,
) -> str:
    """
    Put a checkpoint on the Hub, in one commit: what fails leaves the repository as it was, and can be repeated.

    Configuration, weights, image processor, code, card, recipe, training log, evaluation and pictures go along;
    training states (`states/`), the best epoch (`best/`) and all that is not promptcam-hf's do not. The pictures
    show photographs of your data. Files of an earlier push that are gone from the folder are deleted in the repository,
    files that were put there by other means stay.

    The card is renewed (see `write_model_card`). Where the folder's says nothing of its own, the one on the Hub is
    renewed, so that what was written there stays. Where both do, the folder's goes, and a warning says where the other
    is kept.

    Args:
        folder: A checkpoint.
        repo_id: Where to: `"name"` or `"namespace/name"`. Made if need be.
        private: Whether a new repository is private. Default: as the namespace has it.
        revision: Branch to commit to, made from `main` if need be. Default: `main`.
        commit_message: Default: "Prompt-CAM of <number> classes".
        license: Licence of the weights, for the card; see `write_model_card`.
        token: Default: the one that `hf auth login` stored, or HF_TOKEN.

    Returns:
        URL of the commit; of the last one if there is nothing new.

    Raises:
        ValueError: If the checkpoint is not complete, or repository, token or an argument will not do.
        OSError: If the Hub cannot be reached or fails: push again.
    """
    folder = Path(folder)
    check_checkpoint(folder)
    api = _api(repo_id, token)
    local_card = read_model_card(folder)
    additions = [CommitOperationAdd(name, folder / name) for name in _our_files(_files(folder))]
    num_labels = read_config(folder).num_labels

    with _in_one_line(repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        is_public = not api.model_info(repo_id).private
    if private and is_public:
        raise ValueError(f"private=True, but {repo_id} exists and is public; make it private in its settings first.")
    with _in_one_line(repo_id):
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        head = api.model_info(repo_id, revision=revision)
        there = [file.rfilename for file in head.siblings or []]
        hub_card = None
        if CARD in there:
            path = api.hf_hub_download(repo_id, CARD, revision=head.sha)
            hub_card = decode_model_card(Path(path).read_bytes(), f"{CARD} of {repo_id}")
    card = renew_model_card(folder, _choose_card(local_card, hub_card, repo_id, head.sha), repo_id, license)
    additions.append(CommitOperationAdd(CARD, card.encode()))
    kept = {addition.path_in_repo for addition in additions}
    deletions = [CommitOperationDelete(name) for name in _our_files(there) if name not in kept]
    with _in_one_line(repo_id):
        commit = api.create_commit(
            repo_id,
            [*additions, *deletions],
            commit_message=commit_message or f"Prompt-CAM of {num_labels} classes",
            revision=revision,
            parent_commit=head.sha,  # the card was made from what is there; if that changes meanwhile, nothing is lost
        )
    write_atomically(folder / CARD, renew_model_card(folder, local_card, repo_id, license))
    return commit.commit_url


def check_can_push(repo_id: str, token: str | None = None) -> None:
    """
    What can be said of a push beforehand, so that a long training does not end in a missing token. A Hub that does not
    answer is a warning, not an error: it may answer later.

    Raises:
        ValueError: If `repo_id` is malformed, or there is no token, or one that the Hub refuses or that may only read.
    """
    api = _api(repo_id, token)
    try:
        with _in_one_line(repo_id):
            user = api.whoami()
    except OSError as error:
        warnings.warn(f"Whether {repo_id} can be pushed to will show: {error}", stacklevel=2)
        return
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ValueError(f"The token may only read, so nothing can be pushed to {repo_id}; {LOG_IN}.")


def check_checkpoint(folder: str | os.PathLike) -> None:
    """
    Look whether a folder holds all that `pipeline("prompt-cam")` needs elsewhere, without loading it.

    Raises:
        ValueError: If something is missing or cut off; it is named.
    """
    folder = Path(folder)
    read_config(folder)
    weights = [WEIGHTS]
    if not (folder / WEIGHTS).is_file() and (folder / WEIGHTS_INDEX).is_file():
        try:
            weights = sorted(set(json.loads((folder / WEIGHTS_INDEX).read_text())["weight_map"].values()))
        except (ValueError, KeyError) as error:
            raise _damaged(folder / WEIGHTS_INDEX, error) from None
    # As it is written: the configuration, once read, forgets the pipeline where its task is registered
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    references = [*config.get("auto_map", {}).values()]
    references += [pipeline["impl"] for pipeline in config.get("custom_pipelines", {}).values()]
    code = {f"{reference.split('.')[0]}.py" for reference in references}
    backbone = config.get("backbone") or ""
    if config.get("prompts_only") and (os.path.isabs(backbone) or os.path.isdir(backbone)):
        raise ValueError(
            f"{folder} holds prompts alone, and its backbone {backbone!r} is a folder of yours, which others do not "
            "have; save it whole, with prompts_only=False, or train on a backbone of the Hub."
        )
    missing = [name for name in (*weights, "preprocessor_config.json", *sorted(code)) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} has no {missing[0]}; expected a whole checkpoint. `pipeline.save_pretrained(...)` writes model, "
            "image processor and code."
        )
    for name in weights:
        try:
            safe_open(folder / name, "pt")
        except SafetensorError as error:
            raise _damaged(folder / name, error) from None


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is damaged or cut off ({error}); write the checkpoint anew.")


def _files(folder: Path) -> list[str]:
    paths = [*folder.glob("*"), *folder.glob("evaluation/*")]
    return sorted(path.relative_to(folder).as_posix() for path in paths if path.is_file())


def _our_files(names: list[str]) -> list[str]:
    return [name for name in names if any(fnmatch(name, pattern) for pattern in OUR_FILES)]


def _choose_card(local: str | None, hub: str | None, repo_id: str, sha: str | None) -> str | None:
    """The card to renew, out of the folder's and the one on the Hub."""
    if local is None or hub is None:
        return local if hub is None else hub
    if not own_text(local):
        return add_metadata(hub, local)
    if own_text(hub) not in ("", own_text(local)):
        warnings.warn(
            f"The folder's {CARD} takes the place of another text in {repo_id}, kept there in commit {sha}.",
            stacklevel=3,
        )
    return add_metadata(local, hub)


def _api(repo_id: str, token: str | None) -> HfApi:
    """A client that has a token.

    Raises:
        ValueError: If it has none, or `repo_id` is malformed.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repo_id={repo_id!r}: expected 'name' or 'namespace/name' ({error})") from None
    token = token or get_token()
    if token is None:
        raise ValueError(f"There is no token of the Hub, which pushing to {repo_id} needs; {LOG_IN}.")
    return HfApi(token=token)


@contextmanager
def _in_one_line(repo_id: str) -> Iterator[None]:
    """What can go wrong on the way to the Hub, as a line that says what to do."""
    again = f"{repo_id} is as it was, or has all of it; push again"
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = " ".join((error.server_message or str(error)).split())
        if status == 401:
            raise ValueError(f"The Hub does not accept the token; {LOG_IN}.") from None
        if status == 403:
            raise ValueError(f"The token may not write to {repo_id} ({reason}); check the name, or {LOG_IN}.") from None
        if status in (400, 404):
            raise ValueError(f"The Hub refuses this for {repo_id}: {reason}") from None
        if status == 412:
            raise OSError(f"{repo_id} was changed by someone meanwhile; push again.") from None
        raise OSError(f"The Hub failed with status {status} ({reason}); {again}.") from None
    except (HTTPError, ConnectionError, TimeoutError, LocalEntryNotFoundError, json.JSONDecodeError) as error:
        reason = " ".join(str(error).split())
        raise OSError(f"The Hub cannot be reached ({reason}); {again}.") from None
    except ValueError as error:  # a card whose metadata the Hub refuses
        raise ValueError(f"The Hub refuses this for {repo_id}: {' '.join(str(error).split())}") from None
