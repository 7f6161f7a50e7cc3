import base64
import io
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from promptcam_hf.modeling import modeling_promptcam
from promptcam_hf.modeling.pipeline_promptcam import class_labels
from transformers import (
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    pipeline,
)
from transformers.pipelines.pt_utils import KeyDataset

from promptcam_hf import PromptCamConfig, PromptCamForImageClassification, PromptCamPipeline, PromptCamPredictor
from promptcam_hf.checkpoint import new_image_processor, save_checkpoint

from ..tiny_models import tiny_model


@pytest.fixture(scope="module")
def traits(checkpoint):
    return pipeline("prompt-cam", model=str(checkpoint))


def same(found, expected) -> None:
    """Two results say the same, pictures included."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a["label"], a["num_sufficient"]) == (b["label"], b["num_sufficient"])
        assert a["score"] == pytest.approx(b["score"], abs=1e-5)
        for trait, other in zip(a["traits"], b["traits"], strict=True):
            assert (trait["rank"], trait["head"]) == (other["rank"], other["head"])
            np.testing.assert_allclose(trait["map"], other["map"], atol=1e-5)
            if trait["heatmap"] is not None:
                difference = np.asarray(trait["heatmap"], int) - np.asarray(other["heatmap"], int)
                assert np.abs(difference).max() <= 4  # of 255: neighbouring colours of the table differ by up to 4


# What it says


def test_explanation_says_what_the_model_computes(traits, photograph):
    (explanation,) = traits(str(photograph))
    pixels = traits.image_processor(images=Image.open(photograph), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        output = traits.model(pixels, output_attentions=True)
    best = output.logits.argmax().item()
    ranking = traits.model.rank_heads(pixels, torch.tensor([best]))
    maps = traits.model.trait_maps(output.attentions[-1])[0, best]
    assert explanation["label"] == traits.model.config.id2label[best]
    assert explanation["score"] == pytest.approx(output.logits.softmax(-1).max().item(), abs=1e-5)
    assert explanation["num_sufficient"] == ranking.num_sufficient.item()
    assert [trait["rank"] for trait in explanation["traits"]] == [1, 2, 3, 4]
    assert [trait["head"] for trait in explanation["traits"]] == ranking.order[0].tolist()
    for trait in explanation["traits"]:
        assert (trait["map"].dtype, trait["map"].shape) == (np.float32, (4, 4))
        np.testing.assert_allclose(trait["map"], maps[trait["head"]], atol=1e-5)
        assert trait["heatmap"].size == Image.open(photograph).size


def test_comparison_says_what_the_model_computes(traits, photograph):
    explanations = traits(photograph, classes=["Scott_Oriole", "Hooded_Oriole"], compare_with="Indigo_Bunting")
    pixels = traits.image_processor(images=Image.open(photograph), return_tensors="pt")["pixel_values"]
    expected = traits.model.compare(pixels, torch.tensor([[3, 1]]), torch.tensor([[4, 4]]))
    scores = traits.model(pixels).logits.softmax(-1)[0]
    for row, explanation in enumerate(explanations):
        comparison, maps = explanation["comparison"], expected.maps[0, row]
        assert comparison["label"] == "Indigo_Bunting"
        assert comparison["score"] == pytest.approx(scores[4].item(), abs=1e-6)
        assert comparison["num_sufficient"] == expected.num_sufficient[0, row].item()
        own, other = expected.contributions[0, row].sum(1)
        for name, values in {"map": maps.sum(0), "own": own, "other": other}.items():
            np.testing.assert_allclose(comparison[name], values, atol=1e-6)
        np.testing.assert_allclose(comparison["shared"], expected.shared[0, row].sum(0), atol=1e-6)
        assert comparison["heatmap"].size == Image.open(photograph).size
        heads = [trait["head"] for trait in comparison["traits"]]
        assert heads == maps.sum((1, 2)).argsort(descending=True).tolist()
        for trait in comparison["traits"]:
            np.testing.assert_allclose(trait["map"], maps[trait["head"]], atol=1e-6)


def test_auto_compares_each_class_with_its_runner_up_in_any_batch(traits, bird_folder):
    photographs = [str(path) for path in sorted(bird_folder.glob("test/*/*.jpg"))[:3]]
    together = traits(photographs, top_k=2, compare_with="auto", batch_size=3, heatmaps=False)
    for photograph, explanations in zip(photographs, together, strict=True):
        first, second = explanations
        assert first["comparison"]["label"] == second["label"]
        assert second["comparison"]["label"] == first["label"]
        np.testing.assert_allclose(first["comparison"]["map"], -second["comparison"]["map"], atol=1e-5)
        assert first["comparison"]["heatmap"] is None
        (alone,) = traits(photograph, compare_with=first["label"], heatmaps=False)  # with itself: the runner-up instead
        assert alone["comparison"]["label"] == second["label"]
        np.testing.assert_allclose(alone["comparison"]["map"], first["comparison"]["map"], atol=1e-5)
    assert "comparison" not in traits(photographs[0])[0]


@pytest.mark.parametrize(
    ("compare_with", "message"),
    [
        ("Scot_Oriole", "^The model knows no class 'Scot_Oriole'"),
        (5, "^No class has the label 5"),
        (-1, "the label -1"),
    ],
)
def test_an_unknown_class_to_compare_with_is_refused(traits, square, compare_with, message):
    with pytest.raises(ValueError, match=message):
        traits(square, compare_with=compare_with)


def test_top_k_classes_come_in_the_order_of_their_scores(traits, photograph):
    explanations = traits(photograph, top_k=3, top_traits=2)
    assert [len(explanation["traits"]) for explanation in explanations] == [2, 2, 2]
    assert explanations == sorted(explanations, key=lambda explanation: -explanation["score"])
    plain = pipeline("image-classification", model=traits.model, image_processor=traits.image_processor)
    expected = plain(Image.open(photograph), top_k=3)
    assert [e["label"] for e in explanations] == [e["label"] for e in expected]
    assert [e["score"] for e in explanations] == pytest.approx([e["score"] for e in expected], abs=1e-5)


def test_more_classes_and_traits_than_there_are_give_all(traits, square):
    explanations = traits(square, top_k=50, top_traits=50)
    assert len(explanations) == 5
    assert all(len(explanation["traits"]) == 4 for explanation in explanations)


def test_classes_are_explained_by_name_or_index_whatever_they_score(traits, square):
    by_name = traits(square, classes=["Scott_Oriole", "Baltimore_Oriole"])
    assert [explanation["label"] for explanation in by_name] == ["Scott_Oriole", "Baltimore_Oriole"]
    same(traits(square, classes=[3, 0]), by_name)
    same(traits(square, classes="Scott_Oriole"), by_name[:1])
    for labels in ([np.int64(3)], np.array([3]), torch.tensor([3]), torch.tensor(3)):
        same(traits(square, classes=labels), by_name[:1])
    assert by_name[0]["num_sufficient"] == 0 or by_name[1]["num_sufficient"] == 0  # not both can be the label


def test_options_may_be_given_once_for_all(checkpoint, traits, square):
    fixed = pipeline("prompt-cam", model=str(checkpoint), classes=["Hooded_Oriole"], top_traits=1, heatmaps=False)
    (explanation,) = fixed(square)
    assert explanation["label"] == "Hooded_Oriole"
    assert [trait["heatmap"] for trait in explanation["traits"]] == [None]


def test_options_of_a_call_replace_those_of_the_pipeline(checkpoint, square):
    traits = pipeline("prompt-cam", model=str(checkpoint), classes=[3])
    assert [row["label"] for row in traits(square)] == ["Scott_Oriole"]
    assert len(traits(square, top_k=3)) == 3
    traits = pipeline("prompt-cam", model=str(checkpoint), top_k=2)
    assert [row["label"] for row in traits(square, classes=["Scott_Oriole"])] == ["Scott_Oriole"]


def test_explaining_four_heads_of_a_class_takes_one_walk_through_the_backbone(traits, square):
    calls = []
    hook = traits.model.backbone.embeddings.register_forward_hook(lambda *_: calls.append(1))
    traits(square, top_k=3, top_traits=4)
    hook.remove()
    assert calls == [1]


# What it takes


def test_a_photograph_may_come_in_any_form(traits, photograph):
    image = Image.open(photograph)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).movedim(-1, 0)
    expected = traits(image, top_k=2)
    for source in (str(photograph), photograph, data, array, array / 255, tensor, {"image": image, "label": 3}):
        same(traits(source, top_k=2), expected)


def test_a_photograph_may_come_over_http(traits, photograph):
    handler = partial(SimpleHTTPRequestHandler, directory=str(photograph.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        same(traits(f"{url}/{photograph.name}", timeout=10), traits(photograph))
        with pytest.raises(ValueError, match=r"missing.jpg: cannot be fetched \(.*(404|Not Found|File not found)"):
            traits(f"{url}/missing.jpg")
        server.shutdown()
    with pytest.raises(ValueError, match="cannot be fetched"):
        traits(url)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_lists_datasets_and_generators_give_what_each_photograph_gives(traits, bird_folder, batch_size):
    paths = sorted(map(str, bird_folder.glob("test/*/*.jpg")))[:5]
    expected = [traits(path, top_k=2) for path in paths]
    split = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
    inputs = [paths, (path for path in paths), split, KeyDataset(split, "image")]
    for source in inputs:
        found = list(traits(source, top_k=2, batch_size=batch_size))
        assert len(found) == 5
        for result, wanted in zip(found, expected, strict=True):
            same(result, wanted)
    assert traits([]) == []
    assert len(traits(split)) == len(list(traits(split, batch_size=batch_size, num_workers=2))) == 5


def test_photographs_of_any_size_and_shape_share_a_batch(traits):
    sizes = [(31, 90), (200, 17), (64, 64), (1, 1)]
    results = traits([Image.new("RGB", size, "teal") for size in sizes], batch_size=4)
    assert [result[0]["traits"][0]["heatmap"].size for result in results] == sizes


def test_heatmaps_may_be_smaller_than_the_photograph(traits):
    photograph = Image.new("RGB", (300, 90), "teal")
    (small,), (large,) = (traits(photograph, heatmaps=heatmaps, compare_with="auto") for heatmaps in (100, True))
    for heatmaps, size in ((small, (100, 30)), (large, (300, 90))):
        pictures = [trait["heatmap"] for trait in (*heatmaps["traits"], heatmaps["comparison"])]
        assert {picture.size for picture in pictures} == {size}
    assert [trait["box"] for trait in small["traits"]] == [trait["box"] for trait in large["traits"]]
    with pytest.raises(ValueError, match="heatmaps=-1: expected True, False or a number of pixels"):
        traits(photograph, heatmaps=-1)


@pytest.fixture
def sees_light(tmp_path):
    """A checkpoint that keeps the aspect ratio, and whose heads attend to light patches."""
    model = tiny_model("vit", 1, backbone={"num_hidden_layers": 1, "image_size": 96})
    embeddings, layer = model.backbone.embeddings, model.layer_parts(1)
    patches = embeddings.patch_embeddings.projection
    with torch.no_grad():
        for weight in (*patches.parameters(), embeddings.position_embeddings, layer.key.weight, layer.query.weight):
            weight.zero_()
        patches.weight[0], layer.key.weight[:, 0], layer.query.bias[:] = 1.0, 1.0, 1.0
    save_checkpoint(model, new_image_processor(96, keep_aspect=True), tmp_path)
    return pipeline("prompt-cam", model=str(tmp_path))


def test_traits_are_in_their_place_where_the_aspect_ratio_is_kept(sees_light, square):
    """One light thing on a dark photograph. The place is known to a patch: a twelfth of the longer side."""
    photographs = []
    for size, box in (((300, 100), (200, 50, 275, 75)), ((90, 300), (0, 225, 30, 300)), ((120, 120), (10, 20, 40, 50))):
        photographs.append(Image.new("RGB", size, (10, 20, 10)))
        photographs[-1].paste((250, 240, 255), box)
        (explanation,) = sees_light(photographs[-1], compare_with="auto")
        trait, patch = explanation["traits"][0], max(size) / 12
        left, top, right, bottom = box
        assert left <= trait["peak"][0] <= right
        assert top <= trait["peak"][1] <= bottom
        np.testing.assert_array_less(np.subtract((left, top), patch), trait["box"][:2])
        np.testing.assert_array_less(trait["box"][2:], np.add((right, bottom), patch))
        shown = np.asarray(trait["heatmap"].convert("L"), int)
        assert (trait["heatmap"].size, trait["map"].shape) == (size, (12, 12))
        y, x = np.unravel_index(shown.argmax(), shown.shape)
        assert left <= x < right
        assert top <= y < bottom
        assert explanation["comparison"]["map"].shape == (12, 12)
    columns = PromptCamPredictor(sees_light, maps=4)(photographs)
    for number, explanations in enumerate(sees_light(photographs, batch_size=3)):
        same(explanations, sees_light(photographs[number]))
        found = [trait["map"] for trait in explanations[0]["traits"]]
        np.testing.assert_allclose(columns["maps"][number, 0], found, atol=1e-6)
    squeezed = pipeline("prompt-cam", model=sees_light.model, image_processor=new_image_processor(96))
    same(sees_light(photographs[2]), squeezed(photographs[2]))


def test_half_precision(checkpoint, traits, square):
    half = pipeline("prompt-cam", model=str(checkpoint), dtype=torch.bfloat16)
    assert half.model.dtype == torch.bfloat16
    (explanation,) = half(square, classes=["Scott_Oriole"])
    (expected,) = traits(square, classes=["Scott_Oriole"])
    assert explanation["score"] == pytest.approx(expected["score"], abs=0.02)
    assert explanation["traits"][0]["map"].dtype == np.float32


def test_larger_pictures_give_finer_maps(checkpoint, square):
    processor = new_image_processor(64)
    processor.size["width"] = 48
    fine = pipeline("prompt-cam", model=str(checkpoint), image_processor=processor)
    assert fine(square)[0]["traits"][0]["map"].shape == (8, 6)


def test_model_object_and_classification_pipeline_work_too(checkpoint, traits, square):
    model = AutoModelForImageClassification.from_pretrained(checkpoint)
    assert isinstance(model, PromptCamForImageClassification)
    given = pipeline("prompt-cam", model=model, image_processor=traits.image_processor)
    same(given(square), traits(square))
    assert isinstance(given, PromptCamPipeline)


def test_class_is_also_known_by_the_name_that_sheets_print(traits, square):
    same(traits(square, classes=["scott oriole"]), traits(square, classes=["Scott_Oriole"]))
    once = traits(square, classes=["Scott_Oriole", "Hooded_Oriole"])
    same(traits(square, classes=["SCOTT ORIOLE", "Scott_Oriole", "Hooded_Oriole"]), once)
    (explanation,) = traits(square, classes=["Hooded_Oriole"], compare_with="scott oriole")
    assert explanation["comparison"]["label"] == "Scott_Oriole"


def test_class_whose_name_fits_two_is_refused_and_both_are_named():
    names = ["Blue_Jay", "Blue Jay", "K\u00e4fer"]
    config = PromptCamConfig(id2label=dict(enumerate(names)))
    assert class_labels("classes", ["Blue Jay", "Ka\u0308fer"], config) == [1, 2]
    with pytest.raises(ValueError, match="knows no class 'blue jay'; expected 'Blue_Jay' or 'Blue Jay'"):
        class_labels("classes", "blue jay", config)


# How it is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["Scot_Oriole"]}, "no class 'Scot_Oriole'; expected 'Scott_Oriole'"),
        ({"classes": ["Penguin"]}, "no class 'Penguin'; expected one of 5 names"),
        ({"classes": [5]}, "No class has the label 5; expected 0 to 4"),
        ({"classes": [-1]}, "No class has the label -1; expected 0 to 4"),
        ({"classes": [1.7]}, "label 1.7; expected 0 to 4, or a name"),
        ({"classes": 1.7}, "No class has the label 1.7"),
        ({"classes": []}, r"classes=\[\]: expected one class or more"),
        ({"top_k": 0}, "top_k=0: expected a whole number, 1 or more"),
        ({"top_traits": 1.5}, "top_traits=1.5: expected a whole number, 1 or more"),
        ({"top_k": 2, "classes": [0]}, "top_k=2 and classes=.* pass one"),
    ],
)
def test_bad_options_are_named(traits, square, options, message):
    with pytest.raises(ValueError, match=message):
        traits(square, **options)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda model, _: model.class_prompts.data[2].fill_(torch.nan), "not finite: bad weights"),
        (lambda model, _: setattr(model.layer_parts(2).norm1, "eps", float("nan")), "not finite: bad weights"),
        (
            lambda _, processor: setattr(processor, "image_std", [0.0, 0.0, 0.0]),
            "bad image processor's mean or standard",
        ),
    ],
)
def test_scores_that_are_not_finite_are_refused(checkpoint, square, broken, message):
    traits = pipeline("prompt-cam", model=str(checkpoint))
    broken(traits.model, traits.image_processor)
    with pytest.raises(FloatingPointError, match=message):
        traits(square, classes=[0])


def test_prompts_are_projected_once_for_many_photographs_and_not_kept(traits, square, monkeypatch):
    """Neither after a list, nor by the caller's code between the results of a generator."""
    projected, own = [], modeling_promptcam.project
    monkeypatch.setattr(modeling_promptcam, "project", lambda *given: projected.append(given) or own(*given))
    expected = [traits(square)] * 4
    once = len(projected)
    for source in ([square] * 4, (square for _ in range(4))):
        projected.clear()
        for found, other in zip(traits(source), expected, strict=True):
            same(found, other)
        assert len(projected) == once
    results = iter(traits(square for _ in range(4)))
    next(results)
    projected.clear()
    for _ in range(2):
        with torch.no_grad():
            traits.model(torch.zeros(1, 3, 32, 32))
    assert len(projected) == 2 * once
    same(next(results), expected[0])
    assert len(projected) == 2 * once


def test_another_model_is_refused(square, traits):
    other = ViTForImageClassification(ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(ValueError, match="ViTForImageClassification is not a Prompt-CAM model"):
        pipeline("prompt-cam", model=other, image_processor=traits.image_processor)


def test_image_processor_that_crops_is_refused(checkpoint):
    processor = new_image_processor(32)
    processor.do_center_crop = True
    with pytest.raises(ValueError, match="crops"):
        pipeline("prompt-cam", model=str(checkpoint), image_processor=processor)
