"""Serve the application: `promptcam app`, as a Python function."""

import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, current_thread, main_thread
from typing import Any
from uuid import uuid4

from PIL import Image

from .. import demo
from ..data.image_files import find_photographs
from ..explanation.inputs import sheet_names
from ..explanation.predictor import NamesTraits, PromptCamPredictor
from ..files import LOCK, only_run_in
from ..messages import check_installed
from ..modeling.images_promptcam import load_photograph, reduced
from .session import DISPLAY_SIZE

logger = logging.getLogger(__name__)

NUM_EXAMPLES = 8
FOLDER = "promptcam-app-"  # how the names of temporary folders begin
SESSIONS = 200  # whose results are kept in memory
SHOWN_TRAITS = 4  # in the contact sheets of many photographs


def serve_app(
    model: str | os.PathLike | None = None,
    *,
    guide: str | os.PathLike | None = None,
    examples: str | os.PathLike | None = None,
    traits: NamesTraits | None = None,
    device: str | None = None,
    backbone: str | os.PathLike | None = None,
    host: str | None = None,
    port: int | None = None,
    share: bool = False,
) -> None:
    """
    Serve the application until it is interrupted, and print its address.

    The page loads nothing from other hosts, and Gradio's analytics are off. Uploaded photographs and results are kept
    in a temporary folder and deleted when the visitor leaves, or after an hour. Of all other files, only those of the
    guide can be read through the page.

    Args:
        model: Checkpoint folder or Hub id. Default: the model of drawn birds that ships with this package.
        guide: Folder of a field guide, as `make_guide` writes it, to show beside the photographs.
        examples: Folder of photographs to choose from, of which the first eight are shown. Default: drawn birds for
            the model that ships, none for others.
        traits: What names the traits that heads look at, such as `TraitNames`.
        device: As for `PromptCamPredictor`.
        backbone: Where the backbone is now (Hub id or folder), for a checkpoint that holds only prompts.
        host: Address to listen at; "0.0.0.0" for all of this machine. Default: GRADIO_SERVER_NAME, or 127.0.0.1.
        port: Port to listen at. Default: GRADIO_SERVER_PORT, or the first free one from 7860.
        share: Whether to make a temporary public address, through Gradio's server.

    Raises:
        ModuleNotFoundError: If Gradio is not installed (extra `app`).
        ValueError: If the checkpoint, the guide or the examples cannot be opened, or the traits are another model's.
        OSError: If the port is taken.
    """
    is_main = current_thread() is main_thread()
    before = signal.signal(signal.SIGTERM, _end_once) if is_main else None
    try:
        options: dict[str, Any] = {"traits": traits, "device": device, "backbone": backbone}
        with serving(model, guide=guide, examples=examples, host=host, port=port, share=share, **options) as address:
            print(f"Open {address} in a browser; Ctrl-C ends the application.", flush=True)
            Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _end_once(number: int, frame: object) -> None:
    """The first signal ends the application; further ones must not interrupt how it ends."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextmanager
def serving(
    model: str | os.PathLike | None = None,
    *,
    guide: str | os.PathLike | None = None,
    examples: str | os.PathLike | None = None,
    host: str | None = None,
    port: int | None = None,
    share: bool = False,
    **predictor_options: Any,
) -> Iterator[str]:
    """Serve the application within this context, whose value is its address. See `serve_app` for the arguments."""
    check_installed("app", "gradio")
    folder = None if guide is None else _guide_folder(Path(guide))
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    from starlette.middleware import Middleware
    from starlette.routing import Mount
    from starlette.staticfiles import StaticFiles

    from .batch import MOST_BYTES
    from .guard import SameHost, SessionFiles
    from .pages import HERE, Pages, system_theme

    pictures = _drawn_birds() if model is None and examples is None else opened_examples(examples)
    predictor = PromptCamPredictor(model or demo.MODEL, maps=SHOWN_TRAITS, num_workers=2, **predictor_options)
    routes = [] if folder is None else [Mount("/guide", StaticFiles(directory=folder))]
    with _temporary_folder() as own:
        page = Pages(predictor, SessionFiles(own), pictures, folder).build(_name(model or demo.MODEL))
        _, local, public = page.launch(
            server_name=host,
            server_port=port,
            share=share,
            theme=system_theme(),
            css_paths=HERE / "page.css",
            footer_links=[],
            run_history=False,
            max_file_size=MOST_BYTES,
            state_session_capacity=SESSIONS,
            app_kwargs={"middleware": [Middleware(SameHost)], "routes": routes},
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            quiet=True,
            prevent_thread_lock=True,
        )
        try:
            yield public or local
        finally:
            page.close(verbose=False)


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A folder for all that Gradio writes, which goes at the end, or at the next start if the application is killed."""
    parent = Path(tempfile.gettempdir()).resolve()
    _remove_abandoned(parent)
    folder = parent / f"{FOLDER}{uuid4().hex}"
    with only_run_in(parent, folder.name + LOCK):  # first: a folder without a lock counts as abandoned
        folder.mkdir(mode=0o700)
        own = {"GRADIO_TEMP_DIR": str(folder), "GRADIO_EXAMPLES_CACHE": str(folder / "examples")}
        before = {variable: os.environ.get(variable) for variable in own}
        os.environ.update(own)
        try:
            yield folder
        finally:
            for variable, value in before.items():
                os.environ.pop(variable) if value is None else os.environ.update({variable: value})
            shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders of this user's applications that were killed: each has a lock file that nobody holds."""
    user = getattr(os, "getuid", lambda: 0)()  # on Windows, files have the owner 0
    for lock in parent.glob(f"{FOLDER}{'[0-9a-f]' * 32}{LOCK}"):
        with suppress(ValueError, OSError):  # of an application that runs
            if lock.lstat().st_uid == user:
                with only_run_in(parent, lock.name):
                    shutil.rmtree(lock.with_suffix(""), ignore_errors=True)


def _guide_folder(guide: Path) -> Path:
    if not (guide / "guide.json").is_file():
        raise ValueError(f"{guide} has no guide.json; expected a folder that `promptcam guide` has written.")
    return guide.resolve()


def opened_examples(examples: str | os.PathLike | None) -> list[tuple[str, Image.Image]]:
    """Names and photographs of the examples, small. Those that cannot be read are named in a warning."""
    if examples is None:
        return []
    opened: list[tuple[str, Image.Image]] = []
    for path in find_photographs(examples)[0]:
        try:
            opened.append((str(path), reduced(load_photograph(path), DISPLAY_SIZE)))
        except ValueError as error:
            logger.warning("%s", error)
        if len(opened) == NUM_EXAMPLES:
            break
    if not opened:
        raise ValueError(f"examples={examples}: no photographs there that can be read; expected some.")
    names, photographs = zip(*opened, strict=True)
    return list(zip(sheet_names(names), photographs, strict=True))


def _drawn_birds() -> list[tuple[str, Image.Image]]:
    species = demo.make_species(16)[:: 16 // NUM_EXAMPLES]
    return [(kind.name.replace("_", " "), demo.draw_bird(kind, number, 320)[0]) for number, kind in enumerate(species)]


def _name(model: str | os.PathLike) -> str:
    """What to call a model: its Hub id, or the name of its folder."""
    if Path(model) == demo.MODEL:
        return "drawn birds"
    return Path(model).resolve().name if Path(model).is_dir() else str(model)
