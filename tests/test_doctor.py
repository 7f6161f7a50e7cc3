"""What goes into a bug report."""

import getpass
import re
import subprocess
import sys
from pathlib import Path

from promptcam_hf import __version__, examine


def test_doctor_prints_versions_and_places_without_tokens_and_names(tmp_path, monkeypatch):
    user = "someone_secret"
    home = tmp_path / user
    cache = tmp_path / "scratch" / user / "hub"
    cache.mkdir(parents=True)
    home.mkdir()
    for name, value in {
        "HOME": home,
        "USER": user,
        "LOGNAME": user,
        "HF_HUB_CACHE": cache,
        "HF_TOKEN": "hf_abc",
    }.items():
        monkeypatch.setenv(name, str(value))
    command = [sys.executable, "-m", "promptcam_hf", "doctor"]
    result = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    found = dict(re.split("  +", line, maxsplit=1) for line in result.stdout.splitlines())
    assert found["promptcam-hf"] == __version__
    assert "<user>/hub" in found["Hub cache"]
    assert found["Hub token"] == "set"
    assert "hf_abc" not in result.stdout
    assert user not in result.stdout


def test_folders_say_whether_they_can_be_used(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    findings = examine()
    assert findings["this folder"].startswith("~ (")
    assert findings["this folder"].endswith("GiB free, writable)")
    assert findings["torch"][0].isdigit()
    assert getpass.getuser() not in Path(findings["Hub cache"]).parts
