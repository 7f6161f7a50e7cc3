"""A Space: written, pushed to a Hub on loopback, and started as the Hub starts it."""

import socket
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import yaml
from PIL import Image

from ..hub_stand_in import HubStandIn

MODEL, SPACE = "birders/orioles", "birders/orioles-app"
MAKE = f"""
import sys
from huggingface_hub import HfApi
from typer.testing import CliRunner
from promptcam_hf.cli import app
api = HfApi()
api.create_repo({MODEL!r})
api.upload_folder(repo_id={MODEL!r}, folder_path=sys.argv[1])
command = ["space", "--model", {MODEL!r}, "--examples", sys.argv[2], "--output-dir"]
for arguments in ([*command, "space", "--push", {SPACE!r}], [*command, "space"], ["space", "--model", sys.argv[1],
                  "--output-dir", "other"]):
    result = CliRunner().invoke(app, arguments)
    print(result.exit_code, result.output.strip().replace("\\n", " "))
"""


@pytest.fixture
def hub():
    with HubStandIn() as hub:
        yield hub


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_a_space_is_made_pushed_and_starts(hub, checkpoint, bird_folder, tmp_path):
    environment = hub.environ(tmp_path / "home") | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    with Image.open(next(bird_folder.glob("test/*/*.jpg"))) as image:
        exif = image.getexif()
        exif[0x010E] = "taken at home"
        image.resize((2000, 1500)).save(photographs / "a bird.jpg", exif=exif)
    command = [sys.executable, "-c", MAKE, checkpoint, photographs]
    made = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert made.returncode == 0, made.stderr[-3000:]
    pushed, again, local = made.stdout.strip().splitlines()[-3:]
    assert pushed == f"0 Space in space Pushed: {hub.url}/spaces/{SPACE}"
    assert again.startswith("1 error: space exists and is not empty; expected a new or empty folder")
    assert "expected an id, such as org/name" in local

    files = hub.files(SPACE, kind="spaces")
    assert set(files) == {"app.py", "requirements.txt", "README.md", "examples/a bird.jpg"}
    settings = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert (settings["sdk"], settings["app_file"], settings["models"]) == ("gradio", "app.py", [MODEL])
    assert all("==" in line and "+" not in line for line in files["requirements.txt"].decode().splitlines())
    assert b"taken at home" not in files["examples/a bird.jpg"]

    port = free_port()
    environment |= {"GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1", "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    space = subprocess.Popen(
        [sys.executable, "app.py"], env=environment, cwd=tmp_path / "space", stderr=subprocess.PIPE
    )
    try:
        page = wait_for(f"http://127.0.0.1:{port}", space)
    finally:
        space.terminate()
        _, errors = space.communicate(timeout=60)
    assert "Prompt-CAM: birders/orioles" in page
    assert "Baltimore_Oriole" in page
    assert b"Traceback" not in errors
    assert list((tmp_path / "tmp").glob("promptcam-app-*")) == []  # nothing is left behind


def wait_for(address: str, process: subprocess.Popen) -> str:
    """The page at an address, once it is served."""
    end = monotonic() + 240
    while True:
        assert process.poll() is None, process.stderr.read().decode()[-3000:]
        assert monotonic() < end
        try:
            with urlopen(address, timeout=30) as page:
                return page.read().decode()
        except (URLError, ConnectionError):
            sleep(0.3)
