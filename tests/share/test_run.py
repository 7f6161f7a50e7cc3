import json

import pytest
from accelerate.state import AcceleratorState

from promptcam_hf.share import run as share
from promptcam_hf.share.model_card import CARD
from promptcam_hf.training.options import TrainingOptions

from ..tiny_models import tiny_model


@pytest.fixture
def options(bird_folder, tmp_path) -> TrainingOptions:
    AcceleratorState._reset_state(reset_partial_state=True)
    tiny_model("vit").backbone.save_pretrained(tmp_path / "backbone")
    return TrainingOptions(data=bird_folder, backbone=tmp_path / "backbone", epochs=1, batch_size=6, num_workers=0)


def test_training_ends_with_a_model_card_also_if_it_was_interrupted(options, tmp_path):
    run, options = tmp_path / "run", options.replace(save_every=1, license="cc-by-4.0", keep_aspect=True)

    def interrupt(row):
        if row["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        share.train(options, run, on_step=interrupt)
    steps = []
    result = share.resume(run, on_step=steps.append)
    assert [row["step"] for row in steps] == [3]
    card = (run / CARD).read_text()
    assert "license: cc-by-4.0" in card
    assert "| photographs of any size, padded to a square, resized to 32" in card
    assert f"{json.loads((run / 'evaluation' / 'results.json').read_text())['accuracy']:.1%}" in card
    (run / CARD).unlink()
    assert share.resume(run)["accuracy"] == result["accuracy"]
    assert (run / CARD).read_text() == card


def test_prompts_alone_are_not_pushed_without_a_backbone_that_others_have(options, tmp_path, monkeypatch):
    monkeypatch.setattr(share, "check_can_push", lambda repo_id: None)
    with pytest.raises(ValueError, match="prompts_only with push_to_hub: others cannot fetch the backbone from the"):
        share.train(options.replace(prompts_only=True, push_to_hub="org/birds"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
