"""Keeps visitors from the files of others and of this machine, and the page from loading anything from other hosts."""

import os
import re
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

# The page loads from its own server only. Gradio's scripts are inline and use eval
POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; base-uri 'self'; form-action 'self'; "
    "object-src 'none'"
)


class Page(gr.Blocks):
    """A page that opens uploaded files only. Gradio itself would also fetch files from other servers, and leaves it to
    the components whether they open other files of this machine."""

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        if not _are_uploads(inputs, get_upload_folder()):
            raise gr.Error("Only files that were uploaded are opened.", print_exception=False)
        return await super().preprocess_data(block_fn, inputs, *args, **kwargs)


def _are_uploads(value: Any, folder: str) -> bool:
    """Whether all files that a value of the page names, however deep, are in a folder."""
    if isinstance(value, dict):
        path = value.get("path")
        is_upload = path is None or (isinstance(path, str) and is_within(path, folder))
        return is_upload and all(_are_uploads(item, folder) for item in value.values())
    return not isinstance(value, (list, tuple)) or all(_are_uploads(item, folder) for item in value)


def is_within(path: str | os.PathLike, folder: str | os.PathLike) -> bool:
    """Whether a path, which need not exist, is below a folder without links in it."""
    return Path(folder) in Path(os.path.abspath(path)).parents


def photograph_input(**options: Any) -> gr.Image:
    """An image input that leaves the uploaded file as it is. Gradio would decode it first, and not say why it cannot.
    This is not a subclass, because Gradio would write a file beside this one for it."""
    image: Any = gr.Image(type="filepath", **options)
    image.preprocess = lambda payload: None if payload is None else payload.path
    return image


class SameHost:
    """ASGI middleware: lets the server fetch nothing for a visitor, and tells the browser to do the same."""

    def __init__(self, app: Callable[..., Any]):
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        from starlette.responses import PlainTextResponse

        if scope["type"] == "http" and re.search(r"/(file|proxy)=https?:/", scope["path"], re.IGNORECASE):
            await PlainTextResponse("Files of other servers are not fetched.", 403)(scope, receive, send)
            return

        async def send_with_policy(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message["headers"], *headers]}
            await send(message)

        await self.app(scope, receive, send_with_policy)


class SessionFiles:
    """
    The files of visitors. They are deleted when a visitor leaves; Gradio deletes what is left an hour later.

    Args:
        root: The application's own temporary folder.
    """

    def __init__(self, root: Path):
        self.root = root
        self._uploads: dict[str, set[Path]] = {}

    def folder(self, session: str) -> Path:
        """A visitor's folder. Its name is a hash, since the name of a session comes from the browser."""
        folder = self.root / "sessions" / sha256(session.encode()).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def uploaded(self, session: str, *paths: str) -> None:
        """Note what a visitor uploaded."""
        # What is noted is removed one day, so nothing is that lies elsewhere
        own = (Path(path) for path in paths if is_within(path, self.root))
        self._uploads.setdefault(session, set()).update(own)

    def forget(self, session: str) -> None:
        """Remove a visitor's files. Equal files are stored once, so those of others stay."""
        shutil.rmtree(self.folder(session), ignore_errors=True)
        for path in self._uploads.pop(session, set()).difference(*self._uploads.values()):
            if path.is_file():
                path.unlink(missing_ok=True)
