"""README and documentation: their code runs, their links lead somewhere, and the site builds without a network."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

import promptcam_hf
from promptcam_hf.checkpoint import new_image_processor
from promptcam_hf.cli import app

from .docs_runner import blocks
from .hub_stand_in import HubStandIn
from .tiny_models import tiny_model

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SPECIES = ("Baltimore_Oriole", "Hooded_Oriole", "Orchard_Oriole", "Scott_Oriole")


@pytest.fixture
def hub(tmp_path):
    """A Hub on loopback with the backbone that the pages name: a tiny one, so that training takes seconds."""
    shape = {"image_size": 28, "patch_size": 14}
    tiny_model("dinov2", backbone=shape).backbone.save_pretrained(tmp_path / "backbone")
    new_image_processor(28).save_pretrained(tmp_path / "backbone")
    with HubStandIn() as hub:
        environment = hub.environ(tmp_path / "hub") | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        code = (
            "import sys, huggingface_hub as hub\n"
            "hub.create_repo('facebook/dinov2-small')\n"
            "hub.upload_folder(repo_id='facebook/dinov2-small', folder_path=sys.argv[1])"
        )
        subprocess.run([sys.executable, "-c", code, tmp_path / "backbone"], env=environment, check=True)
        yield environment


def test_the_code_of_every_page_runs(hub, bird_folder, tmp_path):
    for split in ("train", "test"):
        for source, species in zip(sorted((bird_folder / split).iterdir()), SPECIES, strict=True):
            (tmp_path / "photographs" / split / species).mkdir(parents=True)
            for number, photograph in enumerate(sorted(source.iterdir())[: {"train": 4, "test": 1}[split]]):
                (tmp_path / "photographs" / split / species / f"{number}.jpg").write_bytes(photograph.read_bytes())
    command = [sys.executable, "-m", "tests.docs_runner", *map(str, PAGES)]
    done = subprocess.run(command, cwd=tmp_path, env=hub, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    runnable = [block for page in PAGES for block in blocks(page) if block.reason is None and block.language != "text"]
    assert done.stdout.count("# ") >= len(runnable) > 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_has_a_language_and_who_is_not_run_says_why(page):
    for block in blocks(page):
        assert block.language in ("python", "bash", "yaml", "text"), f"{page.name}:{block.line}"
        assert block.reason != "", f"{page.name}:{block.line}"


def test_links_and_pictures_of_the_readme_are_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (ROOT / link.partition("#")[0]).is_file()] == []
    assert len(text.splitlines()) <= 110


def test_files_that_the_pages_name_are_there():
    named = re.compile(r"`((?:examples|tests|promptcam_hf|modeling|docs)/[\w/.]+\.\w+)")
    for page in PAGES:
        found = named.findall(page.read_text(encoding="utf-8"))
        assert [name for name in found if not (ROOT / name).exists()] == [], page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_the_pages_take_the_options_that_they_are_given(page):
    """Those that are too slow to run, too."""
    commands = get_command(app).commands
    for block in (block for block in blocks(page) if block.language == "bash"):
        for line in block.code.replace("\\\n", " ").splitlines():
            if script := re.search(r"python (?:-m )?(examples[\w./]+)(.*)", line):
                known, given = _options_of_script(script[1]), script[2]
            elif command := re.search(r"(?:promptcam|-m promptcam_hf) ([a-z]+) (.*)", line):
                options = commands[command[1]].params
                known, given = {name for each in options for name in each.opts + each.secondary_opts}, command[2]
            else:
                continue
            assert set(re.findall(r" (--[a-z][a-z0-9-]*)", given)) <= known, f"{page.name}:{block.line}: {line}"


def _options_of_script(script: str) -> set[str]:
    """Also those that it takes from another script."""
    source = ROOT / (script if script.endswith(".py") else script.replace(".", "/") + ".py")
    text = source.read_text(encoding="utf-8")
    imported = re.findall(r"^from (examples\.\w+\.\w+) import", text, re.MULTILINE)
    return set(re.findall(r'"(--[a-z][a-z0-9-]*)"', text)).union(*map(_options_of_script, imported))


@pytest.mark.parametrize("page", ["benchmarks", "does_it_find_the_traits", "measured_maps", "recipe"])
def test_measured_tables_stand_beside_the_command_that_measures_them(page):
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    sections = [section for section in text.split("\n## ") if re.search(r"^\|[^`]*\d\.\d", section, re.MULTILINE)]
    assert sections
    command = re.compile(r"\.py\b|python -m \w|make weights|promptcam (?:train|evaluate|explain|compare|demo)")
    assert [section.partition("\n")[0] for section in sections if not command.search(section)] == []


def test_the_site_builds_without_warnings_and_asks_no_other_server(tmp_path):
    pytest.importorskip("mkdocs", reason="needs pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for page in (tmp_path / "site").glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert re.findall(r'<(?:script|img|link rel="stylesheet")[^>]+(?:src|href)="(?:https?:)?//', text) == [], page
    options = (tmp_path / "site" / "command_line.html").read_text(encoding="utf-8")
    assert "--cache-features" in options
    reference = (tmp_path / "site" / "python.html").read_text(encoding="utf-8")
    documented = {anchor.rpartition(".")[2] for anchor in re.findall(r'id="([\w.]+)"', reference)}
    assert set(promptcam_hf.__all__) - documented == {"__version__", "demo"}
    listed = re.findall(r"\]\((\w+\.md)\)", (tmp_path / "site" / "llms.txt").read_text(encoding="utf-8"))
    assert set(listed) == {page.name for page in PAGES[1:]}
    assert all((tmp_path / "site" / name).is_file() for name in listed)
