import numpy as np
import pytest
import torch
from PIL import Image

from promptcam_hf.checkpoint import new_image_processor
from promptcam_hf.data import EvaluationTransform, Photographs, TrainTransform, load_image_folder


def folder_with(root, *files: str):
    for number, name in enumerate(files):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10), (number, 0, 0)).save(path)
    return root


def test_classes_are_sorted_and_every_photograph_is_found(bird_folder):
    train, evaluation, names = load_image_folder(bird_folder)
    assert names == sorted(path.name for path in (bird_folder / "train").iterdir())
    assert (len(train), len(evaluation)) == (24, 12)
    for split in (train, evaluation):
        assert all(names[row["label"]] in row["image"]["path"] for row in split)


@pytest.mark.parametrize("name", ["test", "validation", "val"])
def test_evaluation_set_may_have_any_of_its_names(tmp_path, name):
    folder_with(tmp_path, "train/a/1.png", "train/b/1.png", f"{name}/b/1.jpg", f"{name}/a/2.jpg", f"{name}/a/3.jpg")
    train, evaluation, names = load_image_folder(tmp_path)
    assert (len(train), sorted(evaluation["label"]), names) == (2, [0, 0, 1], ["a", "b"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "has no folder 'train'"),
        (["train/a/1.png", "train/b/1.png"], "no images in test/ or validation/"),
        (["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png"], "no training images of c"),
        (["train/1.png", "train/2.png", "test/1.png"], "train holds less than two folders"),
    ],
)
def test_folders_that_cannot_be_trained_on_are_refused(tmp_path, files, message):
    folder_with(tmp_path, *files)
    with pytest.raises(ValueError, match=message) as error:
        load_image_folder(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_folder_without_images_and_no_folder_are_refused(tmp_path):
    for name in "ab":
        (tmp_path / "train" / name).mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no images"):
        load_image_folder(tmp_path)
    with pytest.raises(ValueError, match="is no folder"):
        load_image_folder(tmp_path / "missing")


def test_unreadable_photograph_is_named(tmp_path):
    folder_with(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png")
    (tmp_path / "train" / "b" / "1.png").write_text("not an image")
    train, _, _ = load_image_folder(tmp_path)
    photographs = Photographs(train, TrainTransform(new_image_processor(8)))
    with pytest.raises(ValueError, match=r"train/b/1\.png: not an image"):
        [photographs[index] for index in range(2)]


def test_evaluation_sees_what_the_pipeline_sees(photograph):
    processor, image = new_image_processor(32), Image.open(photograph)
    found = EvaluationTransform(processor)(image)
    resized = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)) / 255
    expected = torch.from_numpy((resized - 0.5) / 0.5).permute(2, 0, 1).float()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_training_sees_crops_of_a_larger_picture_and_their_mirror_images():
    gradient = Image.merge("RGB", [Image.linear_gradient("L").resize((64, 48))] * 3).rotate(90, expand=True)
    transform = TrainTransform(new_image_processor(224))
    torch.manual_seed(0)
    views = [transform(gradient) for _ in range(40)]
    assert all(view.shape == (3, 224, 224) for view in views)
    whole = np.asarray(gradient.resize((240, 240), Image.Resampling.BILINEAR))
    whole = (torch.from_numpy(whole / 255).permute(2, 0, 1).float() - 0.5) / 0.5
    windows = whole.unfold(1, 224, 1).unfold(2, 224, 1)[:, 0]  # this picture differs along its width alone
    mirrored = 0
    for view in views:
        straight = (windows - view[:, None]).abs().amax(dim=(0, 2, 3)).min()
        flipped = (windows - view.flip(-1)[:, None]).abs().amax(dim=(0, 2, 3)).min()
        assert min(straight, flipped) < 1e-5
        mirrored += int(flipped < straight)
    assert 8 < mirrored < 32
