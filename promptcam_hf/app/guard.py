"""Keeps visitors from the files of others and of this machine, and the page from loading anything from other hosts."""

import re
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import gradio as gr

# The page loads from its own server only. Gradio's scripts are inline and use eval
POLICY = (
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; base-uri 'self'; form-action 'self'; "
    "object-src 'none'"
)
OTHER_HOST = re.compile(r"https?:/", re.IGNORECASE)


class Page(gr.Blocks):
    """A page that takes uploaded files only. Gradio by itself would also fetch files from other servers."""

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        if _names_other_host(inputs):
            raise gr.Error("Photographs are uploaded, not fetched from other servers.", print_exception=False)
        return await super().preprocess_data(block_fn, inputs, *args, **kwargs)


def _names_other_host(value: Any) -> bool:
    """Whether a value of the page, however deep, names a file by a URL."""
    if isinstance(value, dict):
        return bool(OTHER_HOST.match(str(value.get("path", "")))) or any(map(_names_other_host, value.values()))
    return isinstance(value, list) and any(map(_names_other_host, value))


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
        self._uploads.setdefault(session, set()).update(map(Path, paths))

    def forget(self, session: str) -> None:
        """Remove a visitor's files. Equal files are stored once, so those of others stay."""
        shutil.rmtree(self.folder(session), ignore_errors=True)
        for path in self._uploads.pop(session, set()).difference(*self._uploads.values()):
            if path.is_file():
                path.unlink(missing_ok=True)
