"""What MkDocs does besides rendering the pages: it fills in what is generated, and writes `llms.txt`."""

import re
import shutil
from pathlib import Path
from typing import Any

from typer.main import get_command

from promptcam_hf.cli import app
from promptcam_hf.cli.application import HEADINGS

GENERATED = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
CODE = re.compile(r"<code>[^<]*</code>|(\d %)")  # in code, a percent sign may be an operator
BLOCK = re.compile(r"(<pre.*?</pre>)", re.DOTALL)
OPTION = re.compile(r"--[a-z][a-z_-]+")
ROOT = Path(__file__).parents[1]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace `<!-- generated: commands -->` by the commands, for example."""
    sources = {"commands": commands, "changelog": changelog}
    return GENERATED.sub(lambda match: sources[match[1]](), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """No line breaks within `--an-option`; outside of blocks of code, none within `95 %`, and no raw markup."""
    parts = BLOCK.split(html)
    return "".join(_unbroken(part) if part.startswith("<pre") else _tidy(part) for part in parts)


def _unbroken(code: str) -> str:
    return OPTION.sub(r'<span class="option">\g<0></span>', code)


def _tidy(html: str) -> str:
    html = CODE.sub(lambda match: match[0].replace(" %", "&nbsp;%") if match[1] else match[0], html)
    html = re.sub(r"<code>([^<]*`[^<]*)</code>", lambda match: _docstring_type(match[1]), html)
    html = re.sub(r"\[<code>~?([^<]+)</code>\]", r"<code>\1</code>", html)
    html = re.sub(r"</code>\s+\)", "</code>)", html)
    return re.sub(r"<code>[^<]*</code>", lambda match: _unbroken(match[0]), html)


def _docstring_type(text: str) -> str:
    """What the docstrings of transformers give as a type, such as "`int`, *optional*, defaults to 1"."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", re.sub(r"\*(\w+)\*", r"<em>\1</em>", text))


def commands() -> str:
    """Every command with its options, from the definitions that the command line itself uses."""
    group: Any = get_command(app)
    lines = []
    for heading in HEADINGS:
        lines += [f"## {heading}", ""]
        for name, command in group.commands.items():
            if command.rich_help_panel == heading:
                lines += [f"### promptcam {name}", "", _as_markdown(command.help), "", *_options(name, command), ""]
    return "\n".join(lines)


def _as_markdown(help: str) -> str:
    text, _, example = help.partition("Example: ")
    example = " ".join(example.split())
    return f"{text.strip()}\n\n```bash\n{example}\n```" if example else text.strip()


def _options(name: str, command: Any) -> list[str]:
    """The same names and texts as in `--help`."""
    context = command.make_context(name, [], resilient_parsing=True)
    records = [parameter.get_help_record(context) for parameter in command.params]
    rows = [f"| `{names.replace('|', ', ')}` | {_cell(help)} |" for names, help in filter(None, records)]
    return ["| Option | Meaning |", "|---|---|", *rows] if rows else []


def _cell(text: str) -> str:
    """Text for a cell of a table, in which Markdown takes no character for its own."""
    return re.sub(r"([|\[\]*_])", r"\\\1", " ".join(text.split()).replace("<", "&lt;"))


def changelog() -> str:
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def on_post_build(config: Any, **_: Any) -> None:
    """Write `llms.txt` (llmstxt.org): every page with its description, as Markdown beside the HTML."""
    site = Path(config.site_dir)
    lines = [f"# {config.site_name}", "", f"> {config.site_description}", "", "## Pages", ""]
    for title, page in _pages(config.nav):
        source = Path(config.docs_dir, page).read_text(encoding="utf-8")
        description = re.search(r"^description: (.+)$", source, re.MULTILINE)
        (site / page).write_text(on_page_markdown(source), encoding="utf-8")
        lines.append(f"- [{title}]({page}): {description[1] if description else title}")
    (site / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    shutil.rmtree(site / "__pycache__", ignore_errors=True)


def _pages(nav: list | str, title: str = "") -> list[tuple[str, str]]:
    """All pages of the navigation, as (title, file)."""
    if isinstance(nav, str):
        return [(title, nav)]
    return [page for entry in nav for name, inner in entry.items() for page in _pages(inner, name)]
