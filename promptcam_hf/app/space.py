"""Make a Space of the Hub that runs the application: `promptcam space`, as Python functions."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

from ..checkpoint import read_config
from ..files import check_new_folder, write_files_atomically
from ..messages import check_installed
from ..modeling.hub_promptcam import is_hub_id
from ..share.hub import api_for, one_line_errors
from ..version import __version__
from .serve import opened_examples

FILES = ["app.py", "requirements.txt", "README.md", "examples/*.jpg", "*.whl"]
# Besides this package; the Space installs Gradio itself, by the `sdk_version` of its README.md
PINNED = ("torch", "transformers", "huggingface_hub", "safetensors", "numpy", "pillow")
APP = '''"""A Space that shows which traits {model} decides by. Made by `promptcam space`."""

from pathlib import Path

from promptcam_hf.app.serve import serve_app

examples = Path(__file__).with_name("examples")
serve_app({model!r}, examples=examples if examples.is_dir() else None)
'''
README = """---
title: {title}
emoji: 🔎
colorFrom: green
colorTo: indigo
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
models:
  - {model}
---
# {title}

Drop a photograph to see the most probable of {num_labels} classes, and where
[{model}](https://huggingface.co/{model}) looks to tell them apart. Blur heads to see how much they matter, compare two
classes, or explain many photographs at once. Photographs are not kept.

Made with promptcam-hf by `promptcam space`.
"""


def make_space(
    model: str,
    output_dir: str | os.PathLike,
    *,
    examples: str | os.PathLike | None = None,
) -> Path:
    """
    Write the files of a Space that runs the application: `app.py`, `requirements.txt` with the versions that are
    installed here, `README.md` with the Space's settings, and examples.

    Args:
        model: Hub id of a Prompt-CAM model.
        output_dir: New or empty folder.
        examples: Folder of photographs to choose from. The first eight are written small, and without what cameras note
            beside them, such as the place. Default: none.

    Returns:
        The folder.

    Raises:
        ValueError: If there is no such model on the Hub, the folder is not empty, or there are no examples in the
            folder given.
        ModuleNotFoundError: If Gradio is not installed (extra `app`).
        OSError: If a file cannot be written.
    """
    folder = Path(output_dir)
    check_installed("app", "gradio")
    check_new_folder(folder)
    if os.path.exists(model) or not is_hub_id(model):
        raise ValueError(f"model={model}: a Space opens its model from the Hub; expected an id, such as org/name.")
    config = read_config(model)
    photographs = opened_examples(examples)
    settings = {"model": model, "title": f"Prompt-CAM {model.rpartition('/')[2]}"[:60], "gradio": _version("gradio")}
    settings |= {"python": ".".join(platform.python_version_tuple()[:2]), "num_labels": str(config.num_labels)}
    requirements = [f"promptcam-hf[app]=={__version__}", *(f"{name}=={_version(name)}" for name in PINNED)]
    with write_files_atomically(folder) as draft:
        (draft / "app.py").write_text(APP.format(**settings), encoding="utf-8")
        (draft / "requirements.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")
        (draft / "README.md").write_text(README.format(**settings), encoding="utf-8")
        if photographs:
            (draft / "examples").mkdir()
        for name, photograph in photographs:
            photograph.save(draft / "examples" / f"{name}.jpg", quality=92)
    return folder


def push_space(
    folder: str | os.PathLike, repo_id: str, *, private: bool | None = None, token: str | None = None
) -> str:
    """
    Create a Space on the Hub and upload its files in one commit. An existing Space gets a new commit.

    Args:
        folder: As `make_space` wrote it. You may have changed the files.
        repo_id: `"name"` or `"namespace/name"`.
        private: Whether a new Space is private. Default: as the namespace is set up.
        token: Default: HF_TOKEN, or the token that `hf auth login` stored.

    Returns:
        URL of the Space.

    Raises:
        ValueError: If the folder holds no Space, or the name or the token is refused.
        OSError: If the Hub cannot be reached or fails.
    """
    folder = Path(folder)
    if not (folder / "app.py").is_file():
        raise ValueError(f"{folder} has no app.py; expected a folder that `promptcam space` has written.")
    api = api_for(repo_id, token)
    with one_line_errors(repo_id):
        url = api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id,
            repo_type="space",
            folder_path=folder,
            allow_patterns=FILES,
            commit_message="Prompt-CAM application",
        )
    return str(url)


def _version(package: str) -> str:
    """The installed version, without the part that names a build, such as +cpu."""
    return version(package).partition("+")[0]
