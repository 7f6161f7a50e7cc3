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
    if "dinov2" in recipe.stem:  # what the recipe says is what the family's defaults are
        defaults = TrainingOptions().resolved("dinov2")
        assert [options.learning_rate, options.prompt_dropout, options.drop_path_rate, options.image_size] == [
            defaults.learning_rate, defaults.prompt_dropout, defaults.drop_path_rate, defaults.image_size,
        ]  # fmt: skip


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
    assert TrainingOptions().resolved("vit").learning_rate == 0.005
    assert TrainingOptions(optimizer="adamw").resolved("vit").learning_rate == 0.001
    dinov2 = TrainingOptions(prompt_dropout=0.3, epochs=10).resolved("dinov2")
    assert (dinov2.learning_rate, dinov2.prompt_dropout, dinov2.drop_path_rate) == (0.001, 0.3, 0.0)
    assert (dinov2.image_size, dinov2.warmup_epochs) == (224, 2)
    assert TrainingOptions(warmup_epochs=0).resolved("vit").warmup_epochs == 0


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
        ("batch_size:", "batch_size=None should be a valid integer"),
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
