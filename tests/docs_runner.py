"""Runs the code blocks of one page after another: `python -m tests.docs_runner PAGE ...`, in a folder of its own.

Python blocks of a page share their names. Of shell blocks, `promptcam` is called in this process, so that torch is
loaded once for all, and trains for one epoch; other programs are started. Blocks after `<!-- not run: REASON -->` are
left out.
"""

import os
import shlex
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

NOT_RUN = "<!-- not run: "


class Block(NamedTuple):
    page: Path
    line: int  # of its fence, counted from 1
    language: str
    code: str
    reason: str | None  # why it is not run


def blocks(page: Path) -> Iterator[Block]:
    """The fenced code blocks of a page."""
    before = ""
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        if token.type == "fence":
            reason = before.removeprefix(NOT_RUN).removesuffix("-->").strip() if before.startswith(NOT_RUN) else None
            yield Block(page, token.map[0] + 1, token.info.strip(), token.content, reason)
        before = token.content.strip() if token.type == "html_block" else ""


def run_page(page: Path, folder: Path, photographs: Path, model: Path) -> str | None:
    """
    Run a page in a folder that holds `photos/`, `scott_oriole.jpg`, and `runs/orioles` unless the page trains it.

    Returns:
        What went wrong, if anything. The rest of the page is not run then.
    """
    folder.mkdir()
    shutil.copytree(photographs, folder / "photos")
    shutil.copy(sorted(photographs.glob("test/Scott_Oriole/*"))[0], folder / "scott_oriole.jpg")
    if model.exists() and "train --data photos/ --backbone facebook/dinov2-small --output-dir runs/orioles" not in (
        page.read_text(encoding="utf-8")
    ):
        shutil.copytree(model, folder / "runs" / "orioles")
    os.chdir(folder)
    names: dict = {"__name__": "__main__"}
    for block in blocks(page):
        if block.reason is not None or block.language in ("text", ""):
            continue
        print(f"# {page.name}:{block.line}", flush=True)
        try:
            {"python": _run_python, "bash": _run_shell, "yaml": _read_recipe}[block.language](block.code, names)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            return f"{page.name}, line {block.line}: {type(error).__name__}: {error}"
    return None


def _run_python(code: str, names: dict) -> None:
    exec(compile(code, "<documentation>", "exec"), names)


def _run_shell(code: str, names: dict) -> None:
    from promptcam_hf.cli import app

    for line in code.replace("\\\n", " ").splitlines():
        command = shlex.split(line, comments=True)
        if command and command[0] == "promptcam":
            short = ["--epochs", "1", "--num-workers", "0"] if command[1] == "train" else []
            status = app(command[1:] + short, standalone_mode=False)
            assert not status, f"{line}: exit status {status}"
        elif command:
            program = sys.executable if command[0] == "python" else command[0]
            subprocess.run([program, *command[1:]], check=True)


def _read_recipe(code: str, names: dict) -> None:
    from promptcam_hf.training.options import load_recipe

    Path("recipe.yaml").write_text(code, encoding="utf-8")
    load_recipe("recipe.yaml")


def main() -> None:
    """The first page trains the model that the others use."""
    here = Path.cwd()
    pages = [Path(page) for page in sys.argv[1:]]
    model = here / pages[0].stem / "runs" / "orioles"
    errors = [run_page(page, here / page.stem, here / "photographs", model) for page in pages]
    sys.exit("\n".join(filter(None, errors)) or 0)


if __name__ == "__main__":
    main()
