"""`promptcam key`."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from promptcam_hf.guide.identification import make_key, trait_scores
from promptcam_hf.guide.names import write_names
from promptcam_hf.guide.vocabulary import Vocabulary, unit

from ..command_line import promptcam

OPTIONS = {"num_workers": 0, "progress": False}


@pytest.fixture(scope="module")
def key(traits, birds_model, bird_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("key") / "key"
    return folder, make_key(birds_model, bird_folder, traits[0], folder, **OPTIONS)


def test_a_trait_is_where_a_patch_is_most_like_it(traits):
    vocabulary = Vocabulary.load(traits[0])
    features = torch.randn(2, 4, 5, len(vocabulary.mean), generator=torch.Generator().manual_seed(0))
    score, place = trait_scores(vocabulary, features)
    centroid = unit(vocabulary.centroids)[1]
    points = unit(features[1].numpy() - vocabulary.mean)
    cosines = points @ centroid  # (4, 5)
    assert score[1, 1] == pytest.approx(cosines.max(), abs=1e-5)
    y, x = np.unravel_index(cosines.argmax(), (4, 5))
    np.testing.assert_allclose(place[1, 1], [(x + 0.5) / 5, (y + 0.5) / 4], rtol=1e-6)


def test_the_key_says_how_often_it_is_right(key, bird_folder):
    folder, result = key
    assert result == json.loads((folder / "key.json").read_text())
    assert (result["split"], result["num_photographs"], result["num_classes"]) == ("test", 12, 4)
    assert result["chance"] == 0.25
    assert 0 <= result["accuracy"] <= 1
    with np.load(folder / "scores.npz") as scores:  # follow it by hand
        score, label = scores["test_score"], scores["test_label"]
    names = sorted(path.name for path in (bird_folder / "test").iterdir())
    couplets = {couplet["number"]: couplet for couplet in result["couplets"]}
    assert sorted(couplets) == [1, 2, 3]
    reached = []
    for row in score:
        target = 1
        while not isinstance(target, str):
            couplet = couplets[target]
            others = [row[look - 1] for look in couplet["others"]]
            value = row[couplet["trait"] - 1] - (max(others) if others else 0)
            target = couplet["yes" if value > couplet["threshold"] else "no"]
        reached.append(target)
    assert result["accuracy"] == pytest.approx(np.mean([a == names[b] for a, b in zip(reached, label, strict=True)]))
    text = (folder / "key.txt").read_text()
    assert f"names {result['accuracy']:.1%} of 12 test photographs correctly (chance: 25.0%" in text
    for name in names:
        assert name.replace("_", " ") in text
    for number in couplets:
        for letter in "ab":
            assert Image.open(folder / "crops" / f"{number}{letter}.webp").size == (112, 112)


def test_names_change_without_a_second_look(key, traits, birds_model, bird_folder, tmp_path):
    folder, source = tmp_path / "key", tmp_path / "traits"
    shutil.copytree(key[0], folder)
    shutil.copytree(traits[0], source)
    asked = key[1]["couplets"][0]["trait"]
    write_names(source, {asked: "<script>red & blue</script>"}, traits[1].results["num_traits"])
    before = (folder / "scores.npz").stat().st_mtime_ns
    result = make_key(birds_model, bird_folder, source, folder, **OPTIONS)
    assert (folder / "scores.npz").stat().st_mtime_ns == before
    assert result == key[1]
    assert "<script>red & blue</script>" in (folder / "key.txt").read_text()
    page = (folder / "key.html").read_text()
    assert "&lt;script&gt;red &amp; blue" in page
    assert "<script" not in page


def test_a_key_needs_a_vocabulary_and_training_photographs(birds_model, bird_folder, traits, tmp_path):
    command = ["key", "--model", birds_model, "--output-dir", tmp_path / "key", "--traits"]
    result = promptcam(*command, tmp_path / "none", "--data", bird_folder)
    assert result.exit_code == 1
    assert "expected a folder from `promptcam traits`" in result.output
    shutil.copytree(bird_folder / "test", tmp_path / "photos" / "test")
    with pytest.raises(ValueError, match=r"has photographs in test/ only; a key needs those in train/, too"):
        make_key(birds_model, tmp_path / "photos", traits[0], tmp_path / "key", **OPTIONS)
