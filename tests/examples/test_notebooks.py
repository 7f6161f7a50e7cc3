"""The notebooks run from top to bottom without a network, and are stored without outputs."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from promptcam_hf import demo

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
SETTINGS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that runs a notebook in a new folder, and returns what its cells show as text and as HTML."""
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    for name in ("HF_HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))

    def run(name: str) -> tuple[str, list[str]]:
        notebook = nbformat.read(FOLDER / name, as_version=4)
        (tmp_path / "work").mkdir()
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path / "work")}}).execute()
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
        text = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
        return text, [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]

    return run


def test_your_own_species(run, tmp_path):
    text, html = run("your_own_species.ipynb")
    assert float(re.search(r"Accuracy: ([\d.]+)%", text)[1]) > 50  # of four species
    best, other, table = html
    assert best.count("<img ") == 1 + 2 * 4
    assert other.count("<img ") == 1 + 4
    assert "Scarlet crowned Finch" in other
    assert table.count("<tr") == 1 + 8
    assert (tmp_path / "work" / "explained.html").read_text(encoding="utf-8").count("<article>") == 10


def test_what_tells_a_from_b(run, tmp_path):
    text, html = run("what_tells_a_from_b.ipynb")
    species = {kind.name: kind for kind in demo.make_species(16)}
    differ = demo.which_parts_differ(species["Scarlet_crowned_Finch"], species["Ivory_barred_Finch"])
    assert f"They differ in: {' '.join(sorted(differ))}" in text
    assert [page.count("<img ") for page in html] == [1 + 2 * 3, 1 + 3 + 4, 1 + 3 + 4]
    assert len(re.findall(r"^bird \d: .* num_sufficient \d", text, re.MULTILINE)) == 10
    scores = re.findall(r"swapped: Scarlet_crowned_Finch +([\d.]+)%, Ivory_barred_Finch +([\d.]+)%", text)
    assert float(scores[0][0]) > 50 > float(scores[-1][0])  # with the trait of B, it is no longer A
    assert float(scores[0][1]) < 50 < float(scores[-1][1])
    assert len(list((tmp_path / "work" / "compared").glob("*.png"))) == 3


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_are_stored_without_outputs_and_their_links_lead_somewhere(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")] == []
    links = [link for cell in notebook.cells for link in re.findall(r"\]\(([^)]+)\)", cell.source)]
    assert links
    assert [link for link in links if not (FOLDER / link).is_file()] == []
