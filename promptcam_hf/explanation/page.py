"""One page about many photographs, in one file: `promptcam explain --html`.

The file is written photograph by photograph, so that any number of them takes the same memory.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from ..files import draft_of, writing_to
from ..modeling.html_promptcam import STYLE, explanations_html

AddToPage = Callable[[str, Sequence[dict[str, Any]] | str, Image.Image | None], None]

HEAD = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Explained photographs</title>
<style>
:root {{ color-scheme: light dark; --ink: #1c1c20; --paper: #fff; --line: #dcdce0; --error: #a3201d }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e8e8ea; --paper: #17171a; --line: #3a3a40; --error: #ff9d97 }}
}}
body {{ margin: 0; color: var(--ink); background: var(--paper); font: 15px/1.5 system-ui, sans-serif }}
main {{ max-width: 64rem; margin: 0 auto; padding: 1rem }}
article {{ border-top: 1px solid var(--line); padding: .8rem 0 }}
article {{ content-visibility: auto; contain-intrinsic-size: auto 20rem }}
h1 {{ font-size: 1.5rem; margin: .5rem 0 }}
h2 {{ font-size: .95rem; font-weight: 400; margin: 0 0 .6rem; overflow-wrap: anywhere }}
.error {{ color: var(--error); overflow-wrap: anywhere }}
{STYLE}</style>
</head>
<body>
<main>
<h1>Explained photographs</h1>
<p>Each row shows a class with its probability, and where its heads look, the most important head first. Brighter
places get more attention. Each map has a scale of its own.</p>
"""
END = """</main>
</body>
</html>
"""


@contextmanager
def page_of(path: Path) -> Iterator[AddToPage]:
    """
    Write a page. It has its name when the block is left, and stays away if that fails.

    Args:
        path: The HTML file. Its folder is created if needed.

    Returns:
        A function that adds a photograph: its name, then its explanations (see `explanations_html`) or why there are
        none, then the photograph at any size, or None.

    Raises:
        OSError: If it cannot be written.
    """
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    # Names of files may hold bytes that are no text
    with draft_of(path) as draft, open(draft, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(HEAD)

        def add(name: str, found: Sequence[dict[str, Any]] | str, photograph: Image.Image | None) -> None:
            if isinstance(found, str):
                shown = f'<p class="error">{escape(found)}</p>'
            else:
                shown = explanations_html(found, photograph)
            file.write(f"<article>\n<h2><bdi>{escape(name)}</bdi></h2>\n{shown}\n</article>\n")

        yield add
        file.write(END)
