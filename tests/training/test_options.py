import itertools
from pathlib import Path

import pytest

from promptcam_hf.training.options import TrainingOptions, load_recipe

RECIPES = sorted((Path(__file__).resolve().parents[2] / "examples" / "recipes").glob("*.yaml"))


ANCHOR_BOMB = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in itertools.pairwise("abcdefghi"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_of_the_examples_can_be_used(recipe):
    given = load_recipe(recipe)
    options = TrainingOptions(**given)
    assert {name: getattr(options, name) for name in given} == given
    assert options.backbone.startswith("facebook/dino")
    if recipe.stem == "your_species":
        return
    # All that the settings of the paper rely on is said, so that no default can change them
    is_dinov2 = "dinov2" in recipe.stem
    rate = 0.0 if is_dinov2 else 0.1
    assert (options.optimizer, options.learning_rate) == ("sgd", 0.001 if is_dinov2 else 0.005)
    assert (options.prompt_dropout, options.drop_path_rate, options.weight_decay) == (rate, rate, 0.001)
    assert (options.num_prompted_layers, options.prompt_init, options.normalisation) == (12, "random", "paper")
    assert (options.label_smoothing, options.validation_share, options.cache_features) == (0.0, 0.0, 0)
    assert (options.warmup_epochs, options.batch_size, options.image_size) == (20, 16, 224)
    assert (options.crops, options.mixed_precision, options.blurred_negative) == ("paper", "no", False)
    unset = TrainingOptions.model_fields.keys() - given.keys()
    assert {"class_weights", "sampling", "patch_dropout", "class_prompt_layer", "num_agnostic_prompts"} <= unset


def test_recipe_may_name_the_home_folder_and_be_utf_16(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "recipe.yaml").write_text("data: ~/Vögel\nbackbone: ~/vit\n", encoding=encoding)
        found = load_recipe(tmp_path / "recipe.yaml")
        assert found == {"data": str(tmp_path / "Vögel"), "backbone": str(tmp_path / "vit")}


def test_saved_options_read_back_as_they_were(tmp_path):
    options = TrainingOptions(data=tmp_path, backbone="x", learning_rate=1e-5, mixed_precision="no", compile=True)
    options.save(tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == options.model_dump()
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_defaults_follow_the_family_and_what_is_given_stays():
    assert TrainingOptions().resolved("vit", 12, 16).learning_rate == 0.01
    assert TrainingOptions(optimizer="sgd").resolved("vit", 12, 16).learning_rate == 0.005
    assert TrainingOptions(optimizer="sgd").resolved("dinov2", 12, 14).learning_rate == 0.001
    dinov2 = TrainingOptions(prompt_dropout=0.3, epochs=10).resolved("dinov2", 12, 14)
    assert (dinov2.learning_rate, dinov2.prompt_dropout, dinov2.drop_path_rate) == (0.01, 0.3, 0.0)
    assert (dinov2.image_size, dinov2.warmup_epochs) == (238, 2)
    assert TrainingOptions(warmup_epochs=0).resolved("vit", 12, 16).warmup_epochs == 0


@pytest.mark.parametrize(("patch_size", "image_size"), [(14, 238), (16, 240), (8, 232)])
def test_dinov2_and_dinov3_get_images_of_a_patch_more_than_224_pixels(patch_size, image_size):
    assert TrainingOptions().resolved("dinov3_vit", 12, patch_size).image_size == image_size
    assert TrainingOptions(image_size=448).resolved("dinov2", 12, patch_size).image_size == 448
    assert TrainingOptions().resolved("vit", 12, patch_size).image_size is None


def test_the_last_four_layers_are_prompted_or_as_many_as_class_prompts_pass_through():
    found = [
        TrainingOptions(class_prompt_layer=layer).resolved("vit", num_layers, 16).num_prompted_layers
        for layer, num_layers in ((None, 12), (12, 12), (10, 12), (8, 12), (1, 12), (None, 3))
    ]
    assert found == [4, 4, 4, 5, 12, 3]


def test_recipes_may_say_numbers_as_people_write_them(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("learning_rate: 1e-3\nweight_decay: 0\nmixed_precision: no\nepochs: 3\n")
    options = TrainingOptions(**load_recipe(recipe))
    assert (options.learning_rate, options.weight_decay, options.mixed_precision) == (0.001, 0.0, "no")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: 0.1", r"recipe.yaml: unknown option 'lerning_rate'; did you mean 'learning_rate'\?"),
        ("zzz: 1", "unknown option 'zzz'; `promptcam train --help` lists the options"),
        ("epochs: many", "recipe.yaml: epochs='many' should be a valid integer"),
        ("epochs: 0", "epochs=0 should be greater than or equal to 1"),
        ("epochs: 2.5", "epochs=2.5 should be a valid integer"),
        ("epochs: true", "epochs=True should be a valid integer"),
        ("epochs:", "epochs=None should be a valid integer"),
        ("prompt_dropout: 1.0", "prompt_dropout=1.0 should be less than 1"),
        ("patch_dropout: -0.1", "patch_dropout=-0.1 should be greater than or equal to 0"),
        ("learning_rate: .nan", "learning_rate=nan should be a finite number"),
        ("optimizer: lion", "optimizer='lion' should be 'sgd' or 'adamw'"),
        ("compile: 1", "compile=1 should be a valid boolean"),
        ("data: 7", "data=7 should be a valid string"),
        ("epochs: 1000000000", "epochs=1000000000 should be less than or equal to 1000000"),
        ("image_size: 100000", "image_size=100000 should be less than or equal to 8192"),
        ("seed: -1", "seed=-1 should be greater than or equal to 0"),
        (f"seed: {list(range(10**4))}", r"seed=\[0, 1, .*\.\.\. should be a valid integer"),
        ("epochs: 3\nseed: 1\nepochs: 4\n", r"cannot be read as a recipe \(line 1: 'epochs' is given twice\)"),
        (ANCHOR_BOMB, r"cannot be read as a recipe \(line 2: aliases such as \*a are not supported\)"),
        ("data: " + "[" * 5000, "cannot be read as a recipe"),
        ("- epochs", "expected one option per line"),
        ("epochs: [", "cannot be read as a recipe"),
    ],
)
def test_recipes_with_mistakes_are_refused(tmp_path, text, message):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe)


def test_options_that_do_not_exist_are_refused_in_python_too():
    with pytest.raises(ValueError, match=r"^unknown option 'lerning_rate'; did you mean 'learning_rate'\?$"):
        TrainingOptions(lerning_rate=0.1)
    with pytest.raises(ValueError, match=r"^epochs=0 should be greater than or equal to 1\.$"):
        TrainingOptions().replace(epochs=0)


def test_missing_recipe_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"none.yaml: cannot be read as a recipe \(.*No such file"):
        load_recipe(tmp_path / "none.yaml")
