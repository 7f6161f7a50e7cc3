"""Pushing checkpoints to the Hub: in one commit, or not at all."""

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalEntryNotFoundError
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import filter_repo_objects, validate_repo_id
from transformers.dynamic_module_utils import get_relative_import_files

from ..checkpoint import WEIGHTS, WEIGHTS_INDEX, check_weights, endpoint_files, weight_files
from ..files import read_mapping, write_atomically
from ..modeling.hub_promptcam import without_local_paths
from ..training.options import RECIPE
from .model_card import CARD, covers, read_config, read_model_card, renew_model_card

# The files that a push uploads and, where the folder no longer has them, deletes on the Hub
PUSHED_FILES = [
    CARD,
    "config.json",
    "preprocessor_config.json",
    "*_promptcam.py",
    WEIGHTS,
    WEIGHTS_INDEX,
    "model-?????-of-?????.safetensors",
    RECIPE,
    "training_log.jsonl",
    "evaluation/results.json",
    "evaluation/traits.png",
    "evaluation/per_class.csv",
    "evaluation/confusions.csv",
    "evaluation/confusions.png",
    "evaluation/comparisons.png",
]
# These patterns' `*` also matches `/`: the code in best/ and in folders of the user
NOT_PUSHED = "*/*_promptcam.py"
# What is raised where there is no answer, or none that makes sense; RuntimeError by `hf_xet`, which sends large files
NO_ANSWER = (HTTPError, ConnectionError, TimeoutError, LocalEntryNotFoundError, json.JSONDecodeError, RuntimeError)
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token with write access"


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
    Push a checkpoint to the Hub in one commit. If anything fails, folder and repository stay as they were, or empty.

    Uploads configuration, weights, image processor, code, model card, recipe, training log and evaluation, whose
    pictures show photographs of your data. Configuration and recipe are pushed without local paths. Files of an earlier
    push that the folder no longer has are deleted from the repository. Other files are left alone, and so are
    `handler.py` and `requirements.txt`, for Inference Endpoints, where the repository has them.

    The folder's model card is renewed (see `write_model_card`) and replaces the one on the Hub. If that says the same
    and more, it replaces the folder's. If each says something else, a warning names the commit that keeps it.

    Args:
        folder: A checkpoint.
        repo_id: Repository, `"name"` or `"namespace/name"`. Created if it does not exist.
        private: Whether a new repository is private. Default: as the namespace is set up.
        revision: Branch, created from `main` if it does not exist. Default: `main`.
        commit_message: Default: "Prompt-CAM of <number> classes".
        license: Licence of the weights, for the card; see `write_model_card`.
        token: Default: HF_TOKEN, or the token that `hf auth login` stored.

    Returns:
        URL of the commit; of the latest commit if nothing has changed.

    Raises:
        ValueError: If the checkpoint is incomplete, or the repository, the token or an argument is refused.
        OSError: If the Hub cannot be reached or fails, or the repository changed during the push. Push again.
    """
    folder = Path(folder)
    check_checkpoint(folder)
    renew_model_card(folder, read_model_card(folder / CARD), repo_id, license)  # any error before anything is created
    api = api_for(repo_id, token)
    repo_id, head = _open_repository(api, repo_id, private, revision)
    pushed = PUSHED_FILES + [name for name in endpoint_files() if name not in _names(head)]
    stale = filter_repo_objects(_names(head), allow_patterns=PUSHED_FILES, ignore_patterns=NOT_PUSHED)
    with (
        _written_unless_it_fails(folder / CARD, _renew_card(api, folder, repo_id, head, license)),
        _without_local_paths(folder, pushed) as public,
        one_line_errors(repo_id),
    ):
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=public,
            commit_message=commit_message or f"Prompt-CAM of {read_config(folder).num_labels} classes",
            revision=revision,
            parent_commit=head.sha,  # fails if somebody has changed the repository, or its card, since
            allow_patterns=pushed,
            ignore_patterns=NOT_PUSHED,
            delete_patterns=list(stale),
        )
    return commit.commit_url


def check_can_push(repo_id: str, token: str | None = None) -> None:
    """
    Check what can be checked before a long training that ends in a push: the repository's name and the token. If the
    Hub does not answer, this only warns, since it may answer later.

    Args:
        repo_id: Repository, as for `push`.
        token: Default: HF_TOKEN, or the token that `hf auth login` stored.

    Raises:
        ValueError: If `repo_id` is malformed, or if the token is missing, refused by the Hub, or has no write access.
    """
    api = api_for(repo_id, token)
    try:
        with one_line_errors(repo_id):
            user = api.whoami()
    except OSError as error:
        warnings.warn(f"Could not check whether {repo_id} can be pushed to: {error}", stacklevel=2)
        return
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ValueError(f"The token has read access only, so it cannot push to {repo_id}; {LOG_IN}.")


def check_checkpoint(folder: str | os.PathLike) -> None:
    """
    Check that a folder holds everything that `pipeline("prompt-cam")` needs on another machine, without loading it.

    Args:
        folder: A checkpoint, as `promptcam train`, `promptcam convert` or `pipeline.save_pretrained` writes it.

    Raises:
        ValueError: If a file is missing or damaged, or weights are missing or have other shapes than the configuration
            says, or if the backbone is not part of it and not on the Hub.
    """
    folder = Path(folder)
    own = read_config(folder)
    # As it is on disk: where the task "prompt-cam" is registered, a loaded configuration has no `custom_pipelines`
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    backbone = config.get("backbone") or ""
    if config.get("prompts_only") and (os.path.isabs(backbone) or os.path.isdir(backbone)):
        raise ValueError(
            f"{folder} holds only the prompts, and others do not have the folder of their backbone, {backbone!r}. Save "
            "the whole model, with prompts_only=False, or train on a backbone from the Hub."
        )
    references = [*(config.get("auto_map") or {}).values()]
    references += [pipeline.get("impl") for pipeline in (config.get("custom_pipelines") or {}).values() if pipeline]
    code = {f"{reference.split('.')[0]}.py" for reference in references if isinstance(reference, str)}
    required = (*weight_files(folder), "preprocessor_config.json", *sorted(code))
    missing = [name for name in required if not (folder / name).is_file()]
    if not missing:
        try:
            for name in sorted(code):
                get_relative_import_files(folder / name)
        except (FileNotFoundError, IsADirectoryError) as error:
            missing = [Path(error.filename).name]
    if missing:
        raise ValueError(
            f"{folder} has no {missing[0]}; expected a complete checkpoint, as `pipeline.save_pretrained(...)` writes "
            "it: model, image processor and code."
        )
    check_weights(folder, own)


def api_for(repo_id: str, token: str | None) -> HfApi:
    """A client with a token.

    Raises:
        ValueError: If there is no token, or `repo_id` is malformed.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"repo_id={repo_id!r}: expected 'name' or 'namespace/name' ({error})") from None
    token = token or get_token()
    if token is None:
        raise ValueError(f"There is no Hub token, which pushing to {repo_id} needs; {LOG_IN}.")
    return HfApi(token=token)


def _open_repository(api: HfApi, repo_id: str, private: bool | None, revision: str | None) -> tuple[str, ModelInfo]:
    """Create repository and branch where they do not exist yet.

    Returns:
        The repository's full name, and what is on the branch.

    Raises:
        ValueError: If the repository has to be private and is public.
    """
    with one_line_errors(repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        is_public = not api.model_info(repo_id).private
    if private and is_public:
        raise ValueError(f"private=True, but {repo_id} exists and is public; make it private in its settings first.")
    with one_line_errors(repo_id):
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        return repo_id, api.model_info(repo_id, revision=revision)


def _names(head: ModelInfo) -> list[str]:
    return [file.rfilename for file in head.siblings or []]


def _renew_card(api: HfApi, folder: Path, repo_id: str, head: ModelInfo, license: str | None) -> str:
    """The card to push: the folder's, unless the one on the Hub says the same and more."""
    local = renew_model_card(folder, read_model_card(folder / CARD), repo_id, license)
    if CARD not in _names(head):
        return local
    with one_line_errors(repo_id):
        path = Path(api.hf_hub_download(repo_id, CARD, revision=head.sha))
    on_hub = renew_model_card(folder, read_model_card(path, f"{CARD} of {repo_id}"), repo_id, license)
    if covers(local, on_hub):
        return local
    if covers(on_hub, local):
        return on_hub
    warnings.warn(
        f"The folder's {CARD} replaces one with other text or metadata on the Hub, which stays in {repo_id}, commit "
        f"{head.sha}.",
        stacklevel=3,
    )
    return local


@contextmanager
def _without_local_paths(folder: Path, pushed: list[str]) -> Iterator[Path]:
    """A temporary folder with what is pushed of a checkpoint. Local paths are private: its configuration and recipe
    name backbone and data by their Hub ids, or not at all."""
    config = read_mapping(folder / "config.json", json.loads)
    recipe = read_mapping(folder / RECIPE, yaml.safe_load)
    public_config = without_local_paths(config)
    data = read_mapping(folder / "evaluation" / "results.json", json.loads).get("hub_id")
    names = {"backbone": public_config.get("backbone"), "data": data, "label_map": None}
    public_recipe = {name: value for name, value in recipe.items() if not value or value == names.get(name, value)}
    public = {}
    if public_config != config:
        public["config.json"] = json.dumps(public_config, indent=2, sort_keys=True) + "\n"
    if public_recipe != recipe:
        public[RECIPE] = yaml.safe_dump(public_recipe, sort_keys=False)
    with TemporaryDirectory(prefix="promptcam-push-") as temporary:
        files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        for name in filter_repo_objects(files, allow_patterns=pushed, ignore_patterns=NOT_PUSHED):
            target = Path(temporary, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            if name in public:
                target.write_text(public[name], encoding="utf-8")
            else:
                _link(folder / name, target)
        for name, content in endpoint_files().items():
            if name in pushed and not (folder / name).is_file():
                Path(temporary, name).write_text(content, encoding="utf-8")
        yield Path(temporary)


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source.resolve())
    except OSError:  # Windows allows links only to some users
        shutil.copyfile(source, target)


@contextmanager
def _written_unless_it_fails(path: Path, text: str) -> Iterator[None]:
    """Write a file, and bring the former one back if the block fails."""
    former = path.read_bytes() if path.is_file() else None
    write_atomically(path, text)
    try:
        yield
    except BaseException:
        if former is None:
            path.unlink()
        else:
            write_atomically(path, former)
        raise


@contextmanager
def one_line_errors(repo_id: str) -> Iterator[None]:
    """Turn the errors of `huggingface_hub` into one line that says what to do."""
    again = f"{repo_id} has all of this push or nothing of it; push again"
    try:
        yield
    except HfHubHTTPError as error:
        status, reason = error.response.status_code, _one_line(error.server_message or error)
        if status == 401:
            raise ValueError(f"The Hub does not accept the token; {LOG_IN}.") from None
        if status == 403:
            raise ValueError(
                f"The token has no write access to {repo_id} ({reason}); check the name, or {LOG_IN}."
            ) from None
        if status in (400, 404):
            raise ValueError(f"The Hub refuses this for {repo_id}: {reason}") from None
        if status == 412:
            raise OSError(f"{repo_id} was changed during the push; push again.") from None
        raise OSError(f"The Hub failed with status {status} ({reason}); {again}.") from None
    except NO_ANSWER as error:
        raise OSError(f"The Hub cannot be reached ({_one_line(error)}); {again}.") from None
    except ValueError as error:  # a model card whose metadata the Hub refuses
        raise ValueError(f"The Hub refuses this for {repo_id}: {_one_line(error)}") from None


def _one_line(error: Exception | str) -> str:
    return " ".join(str(error).split())
