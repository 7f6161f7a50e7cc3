"""Imports point one way, as docs/contributing.md says, and form no cycle."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A folder imports only from those to its right, and from itself
ROOMS = ("cli", "app", "demo", "share", "guide", "training", "evaluation", "explanation", "data", "modeling")


def files() -> dict[str, Path]:
    """Files by their module's name; `modeling/` is installed as `promptcam_hf.modeling`."""
    found = {}
    for folder, package in (("promptcam_hf", "promptcam_hf"), ("modeling", "promptcam_hf.modeling")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


FILES = files()


def imported(module: str) -> Iterator[str]:
    """The modules of the package that a module imports, in functions too."""
    package = module.split(".") if FILES[module].name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in FILES)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *(node.module or "").split(".")]).rstrip(".")
            for name in node.names:
                target = f"{source}.{name.name}" if f"{source}.{name.name}" in FILES else source
                if target in FILES:
                    yield target


def room(module: str) -> str:
    return module.split(".")[1] if module.count(".") else ""


def test_no_cycle() -> None:
    graph = {module: set(imported(module)) for module in FILES}
    assert sum(len(targets) for targets in graph.values()) > 300  # they are found
    list(TopologicalSorter(graph).static_order())  # raises at a cycle, and names it


def test_rooms_import_downwards() -> None:
    assert {room(module) for module, path in FILES.items() if path.parent.name == room(module)} >= set(ROOMS)
    upward = [
        f"{module} imports {target}"
        for module in FILES
        for target in imported(module)
        if room(module) in ROOMS and (target == "promptcam_hf" or room(target) in ROOMS[: ROOMS.index(room(module))])
    ]
    assert upward == []


@pytest.mark.parametrize("module", [module for module in FILES if room(module) == "modeling"])
def test_what_travels_to_the_hub_imports_its_siblings_only(module: str) -> None:
    assert {room(target) for target in imported(module)} <= {"modeling"}
