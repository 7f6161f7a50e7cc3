"""Importing the package: cheap, and transformers knows Prompt-CAM once both are imported, in whatever order."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import promptcam_hf

HEAVY = "print(sorted({'torch', 'transformers', 'datasets', 'accelerate', 'pandas', 'PIL'} & set(sys.modules)))"
WORKS = (
    "from transformers import AutoModelForImageClassification, pipeline\n"
    "import promptcam_hf\n"
    "model = AutoModelForImageClassification.from_pretrained(promptcam_hf.demo.MODEL)\n"
    "print(type(model).__module__, type(pipeline('prompt-cam', device='cpu')).__name__)"
)


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_python_that_runs_in_a_clone_finds_the_clone(tmp_path):
    """The folders of a clone are not laid out as they are installed, and come before what is installed."""
    root = Path(__file__).resolve().parents[1]
    for name in ("promptcam_hf", "modeling"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    code = "import promptcam_hf.modeling.handler as handler; print(handler.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == str(tmp_path / "modeling" / "handler.py"), done.stderr[-2000:]


def test_the_command_line_answers_without_torch_and_transformers():
    calls = [["--version"], ["--help"], ["train", "--help"], ["explain", "--help"], ["demo", "--help"]]
    code = (
        f"import sys\nfrom promptcam_hf.cli import app\nfor call in {calls}: app(call, standalone_mode=False)\n{HEAVY}"
    )
    assert python(code).splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "first",
    [
        # Twice, and a look at transformers that does not import it
        "import importlib.util, promptcam_hf as p; importlib.reload(p); importlib.util.find_spec('transformers')",
        "import transformers.models.vit, promptcam_hf",
        "import promptcam_hf.modeling",  # which imports transformers while it is itself not complete
    ],
)
def test_transformers_knows_prompt_cam_after_both_imports(first):
    assert python(f"{first}\n{WORKS}") == "promptcam_hf.modeling.modeling_promptcam PromptCamPipeline"


def test_an_import_of_transformers_that_fails_can_be_repeated(tmp_path):
    """As where one of its dependencies is missing, and then installed."""
    code = (
        "import sys, promptcam_hf\n"
        "sys.modules['huggingface_hub'] = None\n"
        "try:\n    import transformers\nexcept ImportError:\n    print('failed')\n"
        "del sys.modules['huggingface_hub']\n"
        f"{WORKS}"
    )
    assert python(code).splitlines()[0] == "failed"


def test_every_public_name_is_there():
    assert {name for name in promptcam_hf.__all__ if not hasattr(promptcam_hf, name)} == set()
    assert set(promptcam_hf.__all__) <= set(dir(promptcam_hf))
    with pytest.raises(AttributeError, match="has no attribute 'PromptCan'"):
        promptcam_hf.PromptCan  # noqa: B018
