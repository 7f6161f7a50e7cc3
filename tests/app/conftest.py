"""The application, started once: a tiny model, a small guide, and the drawn birds as examples."""

from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs pip install '.[app]'")

from promptcam_hf.app.serve import serving


@pytest.fixture(scope="package")
def guide(tmp_path_factory) -> Path:
    """A field guide that knows one species."""
    folder = tmp_path_factory.mktemp("guide")
    (folder / "guide.json").write_text("{}")
    (folder / "index.html").write_text("<title>All species</title>")
    (folder / "species").mkdir()
    for name in ("Baltimore_Oriole", "Hooded_Oriole", "Orchard_Oriole", "Scott_Oriole", "Indigo_Bunting"):
        (folder / "species" / f"{name}.html").write_text(f"<title>{name}</title>")
    return folder


@pytest.fixture(scope="package")
def address(checkpoint, guide, bird_folder) -> str:
    with serving(checkpoint, guide=guide, examples=bird_folder / "test", host="127.0.0.1", device="cpu") as address:
        yield address
