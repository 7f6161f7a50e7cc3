"""`promptcam app`, where it cannot start."""

import sys

from ..command_line import promptcam


def test_without_gradio_the_command_names_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("promptcam_hf.app")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = promptcam("app")
    assert (result.exit_code, result.output) == (
        1,
        "error: gradio is not installed; run: pip install 'promptcam-hf[app]', or in a clone: pip install '.[app]'\n",
    )


def test_what_is_no_guide_is_refused(tmp_path):
    result = promptcam("app", "--guide", tmp_path)
    assert result.exit_code == 1
    assert "has no guide.json; expected a folder that `promptcam guide` has written." in result.output
