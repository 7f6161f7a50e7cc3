"""The alternatives to Prompt-CAM: each compared with its definition, and one run of the whole command."""

import csv
import json
import shutil
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModel

from promptcam_hf import PromptCamForImageClassification
from promptcam_hf.checkpoint import new_image_processor, save_checkpoint
from promptcam_hf.evaluation.explainers import ComparisonExplainer, PromptCamExplainer
from promptcam_hf.evaluation.faithfulness import area_under, insertion_curve
from promptcam_hf.evaluation.funnybirds_scenes import measure_funnybirds
from promptcam_hf.evaluation.prediction import class_names
from promptcam_hf.evaluation.trait_data import load_trait_data
from promptcam_hf.evaluation.trait_metrics import evaluate_traits

from ..evaluation.cases import save_scene
from ..tiny_models import FAMILIES, HIDDEN_SIZE, IMAGE_SIZE, NUM_HEADS, NUM_LABELS, NUM_LAYERS, images, tiny_model

pytest.importorskip("captum", reason="the benchmark of trait maps needs captum")

from examples.benchmarks import faithfulness, funnybirds_scores, linear_probe, traits

GRID = (4, 4)


@pytest.fixture(scope="module", params=FAMILIES)
def probe(request) -> linear_probe.LinearProbe:
    model = tiny_model(request.param)
    torch.manual_seed(2)
    classifier = torch.nn.Linear(HIDDEN_SIZE, NUM_LABELS).requires_grad_(False)
    return linear_probe.LinearProbe(model, classifier)


@pytest.fixture(scope="module")
def eager(probe) -> AutoModel:
    """The backbone in transformers, which returns attention weights."""
    backbone = AutoModel.from_config(probe.model.config.backbone_config, attn_implementation="eager")
    backbone.load_state_dict(probe.model.backbone.state_dict(), strict=False)
    return backbone.eval().requires_grad_(False)


def classes_of(pixel_values: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(pixel_values)) % NUM_LABELS


# --- The probe


def test_probe_classifies_the_backbones_cls_token(probe, eager):
    pixel_values = images(3)
    expected = probe.classifier(eager(pixel_values).last_hidden_state[:, 0])
    torch.testing.assert_close(probe(pixel_values), expected, rtol=1e-4, atol=1e-4)


def test_logistic_regression_ends_at_the_minimum():
    torch.manual_seed(0)
    features, labels = torch.randn(60, 8).double(), torch.arange(60) % 3
    linear = linear_probe.logistic_regression(features, labels, num_classes=3, penalty=0.01)
    loss = cross_entropy(linear(features), labels) + 0.01 / 2 * linear.weight.square().sum()
    gradients = torch.autograd.grad(loss, list(linear.parameters()))
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-5
    assert loss.item() < 1.0  # ln 3 at the start


def test_probe_is_fitted_on_all_views_to_features_as_they_are():
    """The features have very different scales, and one is constant. The first two distinguish the classes."""
    torch.manual_seed(0)
    labels = torch.arange(50) % 2
    features = torch.randn(2, 50, 4) * torch.tensor([1.0, 100.0, 0.01, 0.0]) + torch.tensor([5.0, 0.0, 0.0, 3.0])
    features[0, :, 0] += 4 * labels  # each view shows one of the two
    features[1, :, 1] += 400 * labels
    classifier, penalty = linear_probe.fit_probe(features, labels, num_classes=2)
    assert penalty in linear_probe.PENALTIES
    for view in features:
        assert (classifier(view).argmax(-1) == labels).float().mean() > 0.8
    assert not classifier.weight.requires_grad
    assert classifier.weight.dtype == torch.float32


def test_penalty_is_the_best_on_the_held_out_photographs():
    """For random labels, that is the strongest penalty."""
    torch.manual_seed(0)
    features, labels = torch.randn(1, 60, 40), torch.randint(2, (60,))
    assert linear_probe.fit_probe(features, labels, num_classes=2)[1] == max(linear_probe.PENALTIES)


# --- Where it looks


def test_cls_attention_is_that_of_the_backbone(probe, eager):
    pixel_values = images(2)
    attention = eager(pixel_values, output_attentions=True).attentions
    assert len(attention) == NUM_LAYERS
    for ours, theirs in zip(probe.walk(pixel_values).attentions, attention, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    expected = attention[-1][:, :, 0, 1:].unflatten(-1, GRID)  # (B, heads, h, w)
    maps = probe.cls_attention(pixel_values, classes_of(pixel_values))
    order = probe.rank_heads(probe.walk(pixel_values), classes_of(pixel_values))
    for index in range(2):
        torch.testing.assert_close(maps[index], expected[index, order[index]], rtol=1e-4, atol=1e-5)
    mean = probe.cls_attention_mean(pixel_values, classes_of(pixel_values))
    torch.testing.assert_close(mean, expected.mean(1, keepdim=True), rtol=1e-4, atol=1e-5)


def test_heads_are_ranked_by_blurring_one_after_the_other(probe):
    pixel_values = images(6, seed=3)
    with torch.no_grad():
        classes, walk = classes_of(pixel_values), probe.walk(pixel_values)
    found = probe.rank_heads(walk, classes)
    for index in range(len(pixel_values)):

        def probability(blurred: set[int], index: int = index) -> float:
            heads = walk.sharp[index].clone()
            for head in blurred:
                heads[head] = walk.blurred[index, head]
            return float(probe.classify(walk.cls[index], heads).softmax(-1)[classes[index]])

        blurred: list[int] = []
        while len(blurred) < NUM_HEADS:
            blurred.append(max(set(range(NUM_HEADS)) - set(blurred), key=lambda head: probability({*blurred, head})))
        assert found[index].tolist() == blurred[::-1]
    assert len({tuple(order) for order in found.tolist()}) > 1  # the test would show little otherwise


def test_blurred_head_attends_to_all_tokens_equally(probe, eager):
    """As all heads do if the queries are zero."""
    pixel_values = images(2)
    walk = probe.walk(pixel_values)
    parts = probe.model.layer_parts(NUM_LAYERS)
    kept = {name: value.clone() for name, value in parts.query.state_dict().items()}
    try:
        for parameter in parts.query.parameters():
            parameter.zero_()
        expected = probe(pixel_values)
    finally:
        parts.query.load_state_dict(kept)
    torch.testing.assert_close(probe.classify(walk.cls, walk.blurred), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(probe(pixel_values), expected, atol=1e-2)


def test_roll_out_is_the_product_of_layers():
    generator = torch.Generator().manual_seed(0)
    attentions = [torch.randn(2, 3, 4, 4, generator=generator).softmax(-1) for _ in range(3)]
    flow = linear_probe.rolled_out(attentions)
    torch.testing.assert_close(flow.sum(-1), torch.ones(2, 4))

    def step(layer: int, image: int, to: int, of: int) -> float:
        mean = sum(float(attentions[layer][image, head, to, of]) for head in range(3)) / 3
        return (mean + (to == of)) / 2

    for image, to, of in product(range(2), range(4), range(4)):  # over all paths from one token to another
        paths = sum(
            step(2, image, to, b) * step(1, image, b, a) * step(0, image, a, of) for a, b in product(range(4), range(4))
        )
        assert float(flow[image, to, of]) == pytest.approx(paths, rel=1e-4)


def test_roll_out_of_the_probe_is_the_row_of_cls(probe, eager):
    pixel_values = images(2)
    flow = linear_probe.rolled_out(list(eager(pixel_values, output_attentions=True).attentions))
    maps = probe.roll_out(pixel_values, classes_of(pixel_values))
    assert maps.shape == (2, 1, *GRID)
    torch.testing.assert_close(maps[:, 0].flatten(1), flow[:, 0, 1:], rtol=1e-4, atol=1e-5)


def by_hand(
    probe: linear_probe.LinearProbe, eager, pixel_values: torch.Tensor, less: torch.Tensor | float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The last layer's patches after its first norm (B, patches, D), and the gradient there of the class's logit, less
    a weighted sum (B, C) of all logits."""
    seen = []
    (norm,) = [
        module
        for name, module in eager.named_modules()
        if name.endswith((f"{NUM_LAYERS - 1}.norm1", f"{NUM_LAYERS - 1}.layernorm_before"))
    ]
    hook = norm.register_forward_hook(lambda module, given, output: seen.append(output.requires_grad_()) or output)
    try:
        logits = probe.classifier(eager(pixel_values).last_hidden_state[:, 0])
    finally:
        hook.remove()
    chosen = logits[torch.arange(len(logits)), classes_of(pixel_values)].sum() - (less * logits).sum()
    (gradient,) = torch.autograd.grad(chosen, seen)
    return seen[0][:, 1:].detach(), gradient[:, 1:]


def test_grad_cam_is_that_of_the_gradient_by_hand(probe, eager):
    pixel_values = images(4)
    activation, gradient = by_hand(probe, eager, pixel_values)
    weights = gradient.mean(1)  # (B, D), over patches
    expected = torch.einsum("bd,bpd->bp", weights, activation).clamp_min(0)
    maps = probe.grad_cam(pixel_values, classes_of(pixel_values))
    assert maps.shape == (4, 1, *GRID)
    assert (expected > 0).any()
    assert (expected == 0).any()
    torch.testing.assert_close(maps.flatten(1), expected, rtol=1e-3, atol=1e-4)


def test_finer_cam_is_grad_cam_of_the_margin_over_similar_classes(probe, eager):
    pixel_values = images(4)
    weights = probe.classifier.weight
    cosine = torch.nn.functional.cosine_similarity(weights[:, None], weights[None], dim=-1)
    less = torch.zeros(4, NUM_LABELS)
    for index, label in enumerate(classes_of(pixel_values).tolist()):
        others = sorted(set(range(NUM_LABELS)) - {label}, key=lambda other: -cosine[label, other].item())
        less[index, others[:3]] = 0.6 / 3
    activation, gradient = by_hand(probe, eager, pixel_values, less)
    expected = torch.einsum("bd,bpd->bp", gradient.mean(1), activation).clamp_min(0)
    maps = probe.finer_cam(pixel_values, classes_of(pixel_values))
    assert (expected > 0).any()
    torch.testing.assert_close(maps.flatten(1), expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(maps, probe.grad_cam(pixel_values, classes_of(pixel_values)), rtol=1e-2)


def test_scores_from_features_are_those_of_images(probe):
    model = tiny_model(probe.model.config.backbone_config.model_type, num_prompted_layers=1)
    model.backbone.load_state_dict(probe.model.backbone.state_dict())
    features = model.frozen_features(images(3))  # what enters the last layer
    torch.testing.assert_close(probe.from_features(features), probe(images(3)), rtol=1e-4, atol=1e-4)


def test_layer_cam_is_that_of_the_gradient_by_hand(probe, eager):
    pixel_values = images(4)
    activation, gradient = by_hand(probe, eager, pixel_values)
    expected = (gradient.clamp_min(0) * activation).sum(-1).clamp_min(0)
    maps = probe.layer_cam(pixel_values, classes_of(pixel_values))
    assert maps.shape == (4, 1, *GRID)
    assert (expected > 0).any()
    torch.testing.assert_close(maps.flatten(1), expected, rtol=1e-3, atol=1e-4)


def test_legrad_is_that_of_the_gradients_of_each_layer(probe, eager):
    pixel_values = images(3).requires_grad_()
    found = eager(pixel_values, output_attentions=True, output_hidden_states=True)
    expected = 0
    for output, attention in zip(found.hidden_states[1:], found.attentions, strict=True):
        scores = probe.classifier(eager.layernorm(output[:, 0]))[range(3), classes_of(pixel_values)]
        (gradient,) = torch.autograd.grad(scores.sum(), attention, retain_graph=True)  # (B, heads, S, S)
        expected = expected + gradient.clamp_min(0).mean(1).sum(1)[:, -GRID[0] * GRID[1] :].unflatten(-1, GRID)
    maps = probe.legrad(pixel_values.detach(), classes_of(pixel_values))
    assert maps.shape == (3, 1, *GRID)
    for image, values in zip(maps[:, 0], expected, strict=True):
        torch.testing.assert_close(image, (values - values.min()) / (values.max() - values.min()), rtol=1e-3, atol=1e-4)


def test_gradients_leave_nothing_behind(probe):
    pixel_values = images(2)
    with torch.no_grad():  # as when logits are computed
        before = probe(pixel_values)
    probe.grad_cam(pixel_values, classes_of(pixel_values))
    probe.layer_cam(pixel_values, classes_of(pixel_values))
    probe.legrad(pixel_values, classes_of(pixel_values))
    assert not pixel_values.requires_grad
    assert torch.equal(probe(pixel_values), before)
    assert all(parameter.grad is None for parameter in probe.parameters())


# --- The command


@pytest.fixture(scope="module")
def photos(bird_folder, tmp_path_factory) -> Path:
    """Drawn birds, the same ones for training and for testing."""
    folder = tmp_path_factory.mktemp("known") / "photos"
    shutil.copytree(bird_folder, folder)
    shutil.rmtree(folder / "train")
    shutil.copytree(folder / "test", folder / "train")
    return folder


@pytest.fixture(scope="module")
def model_folder(photos, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    names = dict(enumerate(sorted((path.name for path in (photos / "test").iterdir()), reverse=True)))
    save_checkpoint(tiny_model("vit", id2label=names), new_image_processor(IMAGE_SIZE), folder)
    return folder


def command(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["traits.py", *map(str, arguments), "--device", "cpu"])
    traits.main()


def test_command_compares_all_methods(photos, model_folder, tmp_path, monkeypatch, capsys):
    output = tmp_path / "traits.json"
    monkeypatch.setattr(linear_probe, "PENALTIES", [1e-5])  # so weak that the probe memorises the training photographs
    command(monkeypatch, "--model", model_folder, "--data", photos, "--output", output, "--views", 1)
    report = json.loads(output.read_text())
    said = capsys.readouterr().out
    assert f"{report['num_both_right']} of 12 test photographs" in said

    methods = {(row["classifier"], row["explainer"]): row for row in report["methods"]}
    assert len(methods) == len(report["methods"]) == 14
    assert {row["num_correct"] for row in methods.values()} == {report["num_both_right"]}
    assert {row["accuracy"] for row in methods.values() if row["classifier"] == "linear probe"} == {1.0}
    model = PromptCamForImageClassification.from_pretrained(model_folder)
    data = load_trait_data(photos, class_names(model), new_image_processor(IMAGE_SIZE))
    expected = evaluate_traits(PromptCamExplainer(model), data, progress=False)
    found = methods["Prompt-CAM", "Prompt-CAM"]
    assert found["accuracy"] == expected["num_correct"] / 12  # on which the probe is right, too
    assert found["mass"] == pytest.approx(expected["mass"])
    assert found["pointing"]["at_distinguishing"] == pytest.approx(expected["pointing"]["at_distinguishing"])
    # Each map is measured with both classifiers, and their curves differ
    of_promptcam, of_probe = (methods[of, "random maps"] for of in ("Prompt-CAM", "linear probe"))
    own, other = of_promptcam["faithfulness"], of_probe["other_faithfulness"]
    assert own["deletion_curve"][0] == pytest.approx(other["deletion_curve"][0])  # same classifier, whole image
    assert own["deletion_curve"][0] != pytest.approx(of_probe["faithfulness"]["deletion_curve"][0], abs=1e-3)

    masks, on_animal = (methods["Prompt-CAM", name] for name in ("the masks", "Prompt-CAM, on the animal alone"))
    assert masks["pointing"]["at_distinguishing"]["top1"] == 1
    mass = [row["mass"] for row in (masks, on_animal, found)]
    assert mass[0]["on_distinguishing"] > mass[1]["on_distinguishing"] > mass[2]["on_distinguishing"]
    assert 0 < mass[1]["on_background"] < mass[2]["on_background"]  # some patches show animal and background

    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 14 + 1
    assert {len(line) for line in lines} == {len(traits.COLUMNS)}
    row = dict(zip(lines[0], lines[9], strict=True))
    grad_cam = methods["linear probe", "Grad-CAM"]
    assert (row["maps"], row["accuracy"]) == ("Grad-CAM", "100.0%")
    assert row["pointing game, first map"] == f"{grad_cam['pointing']['at_distinguishing']['top1']:.1%}"
    assert row["insertion, other classifier"] == f"{grad_cam['other_faithfulness']['insertion']:.3f}"
    chance = dict(zip(lines[0], lines[-1], strict=True))
    assert chance["attention on distinguishing parts"] == f"{grad_cam['mass']['area_distinguishing']:.1%}"
    assert chance["insertion"] == "-"


@pytest.fixture
def plain_photos(photos, tmp_path) -> Path:
    """The same photographs without masks."""
    for split in ("train", "test"):
        shutil.copytree(photos / split, tmp_path / "plain" / split)
    return tmp_path / "plain"


def test_without_masks_faithfulness_alone_is_measured(plain_photos, model_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(linear_probe, "PENALTIES", [1e-5])
    options = ["--views", 0, "--faithfulness-images", 2, "--output", tmp_path / "traits.json"]
    command(monkeypatch, "--model", model_folder, "--data", plain_photos, *options)
    report = json.loads((tmp_path / "traits.json").read_text())
    assert len(report["methods"]) == 12
    assert not any("pointing" in row for row in report["methods"])
    assert all(0 < row["other_faithfulness"]["insertion"] < 1 for row in report["methods"])
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert {line[5].strip() for line in lines[2:]} == {"-"}


def test_faithfulness_of_each_photograph_goes_on_where_it_was(
    plain_photos, model_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(linear_probe, "PENALTIES", [1e-5])
    out, batch = tmp_path / "out", 2

    def run(count: int, steps: int = 4) -> list[dict[str, str]]:
        options = ["--views", 0, "--images", count, "--steps", steps, "--batch-size", batch, "--device", "cpu"]
        given = ["--model", model_folder, "--data", plain_photos, "--output-dir", out, *options]
        monkeypatch.setattr(sys, "argv", ["faithfulness.py", *map(str, given)])
        faithfulness.main()
        with open(out / "faithfulness.csv", newline="") as file:
            return list(csv.DictReader(file))

    few = run(2)
    assert len(few) == 2 * 9 * 2
    with open(out / "faithfulness.csv", "a") as file:  # killed while it wrote
        file.write("Finch/1.jpg,Prompt-CAM,Prompt-CAM,linear pr")
    more = run(4)
    assert more[: len(few)] == few
    assert len(more) == 4 * 9 * 2
    assert len({row["photograph"] for row in more}) == 4
    # The same as the library measures
    model = PromptCamForImageClassification.from_pretrained(model_folder)
    data = load_trait_data(plain_photos, class_names(model), new_image_processor(IMAGE_SIZE))
    rows = {data.photographs.name(row): row for row in range(len(data))}
    explainer = PromptCamExplainer(model)
    for row in more:
        if (row["classifier"], row["maps"], row["judge"]) == ("Prompt-CAM", "Prompt-CAM", "Prompt-CAM"):
            image = data[rows[row["photograph"]]]
            pixel_values, label = image.pixel_values[None], torch.tensor([image.label])
            maps = explainer.maps(pixel_values, label)[:, :4].sum(1)
            expected = area_under(insertion_curve(explainer.logits, pixel_values, maps, label, 4)).item()
            assert float(row["insertion"]) == pytest.approx(expected, abs=1e-4)
    text = (out / "table.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert text.count("\n| ") == 2 + 9
    with pytest.raises(SystemExit, match="out has results of another model, data or options; choose another folder"):
        run(4, steps=5)


def test_funnybirds_scores_of_all_maps(photos, model_folder, tmp_path, monkeypatch, capsys):
    """The photographs have masks of parts, which the scenes have not."""
    monkeypatch.setattr(linear_probe, "PENALTIES", [1e-5])
    scenes, out = save_scene(tmp_path / "scenes"), tmp_path / "out"
    given = ["--model", model_folder, "--data", photos, "--scenes", scenes, "--output-dir", out, "--views", 0]
    monkeypatch.setattr(sys, "argv", ["funnybirds_scores.py", *map(str, given), "--device", "cpu"])
    funnybirds_scores.main()
    rows = json.loads((out / "scores.json").read_text())
    assert len(rows) == 12
    model = PromptCamForImageClassification.from_pretrained(model_folder)
    options = (scenes, class_names(model), new_image_processor(IMAGE_SIZE))
    for row, explainer in zip(rows, (PromptCamExplainer(model), ComparisonExplainer(model)), strict=False):
        expected = measure_funnybirds(explainer, *options, progress=False)
        assert {name: row[name] for name in expected} == pytest.approx(expected)
    table = capsys.readouterr().out
    assert table.strip() == (out / "table.md").read_text().strip()
    assert table.count("\n| ") == 2 + 12

    (out / "scores.json").write_text(json.dumps(rows[:11]))  # stopped before the last map
    monkeypatch.setattr(traits.Comparison, "train_probe", None)
    funnybirds_scores.main()
    again = json.loads((out / "scores.json").read_text())
    assert again[:11] == rows[:11]
    assert again[11].keys() == rows[11].keys()


def test_photographs_are_taken_from_each_class_in_turn():
    assert faithfulness.spread_over_classes([1, 1, 1, 0, 0, 2]) == [3, 0, 5, 4, 1, 2]


def test_missing_model_is_reported(photos, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="no-such-model"):
        command(monkeypatch, "--model", tmp_path / "no-such-model", "--data", photos)
