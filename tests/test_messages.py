import pytest
from huggingface_hub import constants

from promptcam_hf.messages import reason_of


def test_cache_that_cannot_be_written_is_the_reason(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    home = tmp_path / "file" / "home"

    def download():
        try:
            home.mkdir(parents=True)
        except OSError as error:
            raise OSError("We couldn't connect to the Hub.\nCheck your connection.") from error

    with pytest.raises(OSError, match="connect") as raised:
        download()
    assert reason_of(raised.value) == "We couldn't connect to the Hub."
    monkeypatch.setattr(constants, "HF_HOME", str(home))
    assert reason_of(raised.value).startswith(f"a copy cannot be written to {home}: Not a directory; set HF_HOME to")
