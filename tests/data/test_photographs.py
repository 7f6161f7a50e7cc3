import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from promptcam_hf.modeling.images_promptcam import load_photograph
from transformers import LlavaImageProcessorPil, ViTImageProcessorPil

from promptcam_hf.checkpoint import new_image_processor
from promptcam_hf.data.photographs import EvaluationTransform, Photographs, TrainTransform, find_unreadable
from promptcam_hf.data.splits import load_splits

from ..tiny_models import assert_close
from .cases import encoded, folder_with


def split_of(*images: dict | None) -> datasets.Dataset:
    """A split of images as `load_splits` gives it."""
    features = datasets.Features(image=datasets.Image(decode=False), label=datasets.ClassLabel(names=["a", "b"]))
    rows = {"image": list(images), "label": [number % 2 for number in range(len(images))]}
    return datasets.Dataset.from_dict(rows, features=features, split="train")


# --- Photographs ------------------------------------------------------------------------------------------------------


def test_large_jpegs_are_read_at_the_size_that_training_needs(tmp_path):
    Image.new("RGB", (800, 800)).save(tmp_path / "large.jpg")
    split = split_of({"path": str(tmp_path / "large.jpg"), "bytes": None})
    photographs = Photographs(split, TrainTransform(new_image_processor(32)))
    assert photographs.example(0)[0].size == (100, 100)
    assert photographs.photograph(0).size == (800, 800)
    assert Photographs(split, EvaluationTransform(new_image_processor(32))).example(0)[0].size == (800, 800)


def test_photographs_are_read_from_files_and_from_bytes(tmp_path):
    folder_with(tmp_path, "train/wren/0.png", "train/wren/1.png")
    photographs = Photographs(
        split_of(
            {"path": str(tmp_path / "train" / "wren" / "1.png"), "bytes": None},
            {"path": "2.png", "bytes": encoded(2)},
            {"path": None, "bytes": encoded(3)},
        ),
        lambda photograph: photograph.getpixel((0, 0)),
    )
    assert [photographs[index] for index in range(3)] == [
        {"pixel_values": (1, 0, 0), "labels": 0},
        {"pixel_values": (2, 0, 0), "labels": 1},
        {"pixel_values": (3, 0, 0), "labels": 0},
    ]
    assert [photographs.name(index) for index in range(3)] == ["wren/1.png", "2.png", "train[2]"]
    assert photographs.photograph(2).size == (20, 10)


def test_unreadable_photograph_is_named(tmp_path):
    folder_with(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png")
    (tmp_path / "train" / "b" / "1.png").write_text("not an image")
    photographs = Photographs(load_splits(tmp_path).train, TrainTransform(new_image_processor(8)))
    with pytest.raises(ValueError, match=r"train/b/1\.png: not an image"):
        [photographs[index] for index in range(2)]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> tuple[datasets.Dataset, dict[int, str]]:
    """Sound and damaged photographs, each as a file and as bytes, and what is said of the damaged files."""
    folder = tmp_path_factory.mktemp("damaged")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    files, soundness = [], []
    for suffix, options in ((".jpg", {}), (".jpg", {"progressive": True}), (".png", {}), (".webp", {}), (".gif", {})):
        buffer = io.BytesIO()
        noise.save(buffer, Image.registered_extensions()[suffix], **options)
        whole = buffer.getvalue()
        for share in (1, 0.95, 0.5, 0.01, 0):
            files.append(folder / f"{len(files)}{suffix}")
            files[-1].write_bytes(whole[: round(share * len(whole))])
            soundness.append(share == 1)
    for name, contents in (("text.jpg", b"not a photograph"), ("text.png", b"<html>404</html>")):
        files.append(folder / name)
        files[-1].write_bytes(contents)
        soundness.append(False)
    split = split_of(
        *({"path": str(file), "bytes": None} for file in files),
        *({"path": None, "bytes": file.read_bytes()} for file in files),
        {"path": str(folder / "missing.jpg"), "bytes": None},
        None,
    )
    messages = {}
    for index, (file, is_sound) in enumerate(zip(files, soundness, strict=True)):
        if is_sound:
            load_photograph(file)
        else:
            with pytest.raises(ValueError, match=file.name) as error:
                load_photograph(file)
            messages[index] = str(error.value)
    return split, messages


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_damaged_photograph_is_found(damaged, num_workers):
    split, expected = damaged
    count = (len(split) - 2) // 2
    found = find_unreadable(split, num_workers)
    assert {index: message for index, message in found.items() if index < count} == expected
    of_bytes = [index for index in found if count <= index < 2 * count]
    assert of_bytes == [index + count for index in expected]
    for index in of_bytes:
        assert found[index].startswith(f"train[{index}]: ")
    assert "no such file" in found[2 * count]
    assert found[2 * count + 1] == (
        f"train[{2 * count + 1}]: not an image that can be read; expected JPEG, PNG, TIFF, WebP or the like."
    )
    assert sum(index >= 2 * count for index in found) == 2


def test_check_says_what_training_would_and_takes_no_random_number(damaged):
    split, _ = damaged
    photographs = Photographs(split, TrainTransform(new_image_processor(8)))
    state = torch.get_rng_state()
    found = find_unreadable(split)
    assert torch.equal(torch.get_rng_state(), state)
    for index in range(len(split)):
        if index in found:
            with pytest.raises(ValueError) as error:  # noqa: PT011
                photographs[index]
            assert str(error.value) == found[index]
        else:
            photographs[index]


# --- Transforms -------------------------------------------------------------------------------------------------------


def test_evaluation_sees_what_the_pipeline_sees(photograph):
    processor, image = new_image_processor(32), Image.open(photograph)
    found = EvaluationTransform(processor)(image)
    resized = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)) / 255
    expected = torch.from_numpy((resized - 0.5) / 0.5).permute(2, 0, 1).float()
    assert_close(found, expected, 1e-6)  # float32 holds 7 digits


class RescalesFirst(ViTImageProcessorPil):
    """Resizes floats, as the processor of DINOv3 does, which needs torchvision."""

    def __call__(self, images, do_rescale=None, do_normalize=None, **_):
        pixels = np.asarray(images, np.float32).transpose(2, 0, 1) / (1 if do_rescale is False else 255)
        pixels = torch.nn.functional.interpolate(torch.from_numpy(pixels)[None], (32, 32), mode="bicubic")
        levels = pixels.round().clamp(0, 255).byte()
        return {"pixel_values": levels if do_normalize is False else (pixels - 0.5) / 0.5}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"do_rescale": False},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5},
        {"image_mean": [0, 0.2, 0.3], "image_std": [1, 1, 2]},
        {"image_mean": 0.5, "image_std": 0.5},
        {"size": {"height": 32, "width": 48}},
        RescalesFirst,
        LlavaImageProcessorPil,
    ],
)
def test_views_become_what_the_image_processor_makes(photograph, changes):
    given = new_image_processor(32).to_dict()
    if changes is LlavaImageProcessorPil:
        processor = new_image_processor(32, keep_aspect=True)
    else:
        processor = RescalesFirst(**given) if changes is RescalesFirst else ViTImageProcessorPil(**(given | changes))
    transform = EvaluationTransform(processor)
    large = load_photograph(photograph)
    for image in (large, large.resize((32, 32)), large.resize((1, 70))):
        expected = processor(images=image, return_tensors="pt")["pixel_values"]
        assert_close(transform.normalise(torch.stack([transform.view(image)])), expected, 1e-6)
    if not changes:
        assert transform.view(large).dtype == torch.uint8  # a quarter of the bytes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": {"shortest_edge": 32}}, r"size is \{'shortest_edge': 32\}; expected a fixed height and width"),
        ({"do_resize": False}, "does not resize"),
        ({"image_mean": [0.5]}, "cannot prepare photographs"),
    ],
)
def test_image_processor_that_does_not_serve_for_batches_is_refused(changes, message):
    processor = ViTImageProcessorPil(**(new_image_processor(32).to_dict() | changes))
    with pytest.raises(ValueError, match=message):
        EvaluationTransform(processor)


def test_training_sees_crops_of_a_larger_picture_and_their_mirror_images():
    columns = np.random.default_rng(0).integers(0, 256, (1, 64, 3), dtype=np.uint8)
    stripes = Image.fromarray(columns.repeat(48, axis=0))
    transform = TrainTransform(new_image_processor(224))
    torch.manual_seed(0)
    views = [transform(stripes) for _ in range(40)]
    assert all(view.shape == (3, 224, 224) and view.dtype == torch.float32 for view in views)
    whole = np.asarray(stripes.resize((240, 240), Image.Resampling.BILINEAR))
    whole = (torch.from_numpy(whole / 255).permute(2, 0, 1).float() - 0.5) / 0.5
    windows = whole.unfold(1, 224, 1).unfold(2, 224, 1)[:, 0]  # this picture differs along its width alone
    a_level = 1.001 * 2 / 255
    mirrored, offsets = 0, set()
    for view in views:
        straight = (windows - view[:, None]).abs().amax(dim=(0, 2, 3))
        flipped = (windows - view.flip(-1)[:, None]).abs().amax(dim=(0, 2, 3))
        assert min(straight.min(), flipped.min()) < a_level
        assert sorted(torch.cat([straight, flipped]))[1] > 10 * a_level  # no other window will do
        mirrored += int(flipped.min() < straight.min())
        offsets.add(int(torch.minimum(straight, flipped).argmin()))
    assert 8 < mirrored < 32
    assert len(offsets) > 8


def test_smaller_crops_show_a_photograph_at_the_scale_of_evaluation():
    pixels = np.random.default_rng(0).integers(0, 256, (70, 50, 3), dtype=np.uint8)
    photograph = Image.fromarray(pixels)
    processor = new_image_processor(56)
    whole = EvaluationTransform(processor)(photograph)
    windows = whole.unfold(1, 42, 1).unfold(2, 42, 1).flatten(1, 2)  # (3, places, 42, 42)
    transform, places = TrainTransform(processor, crop=42), set()
    torch.manual_seed(0)
    for _ in range(30):
        view = transform(photograph)
        assert view.shape == (3, 42, 42)
        distances = torch.stack([(windows - each[:, None]).abs().amax(dim=(0, 2, 3)) for each in (view, view.flip(-1))])
        assert distances.min() < 2.5 / 127.5  # resized by PIL there, by torch here
        places.add(int(distances.argmin()))
    assert len(places) > 15


@pytest.mark.parametrize("size", [(61, 20), (20, 61)])
def test_training_pads_as_evaluation_does(size):
    photograph = Image.linear_gradient("L").convert("RGB").resize(size)
    processor = new_image_processor(224, keep_aspect=True)
    view, plain = TrainTransform(processor)(photograph), EvaluationTransform(processor)(photograph)
    padding = [(pixels == pixels[0, 0, 0]).all(0).float().mean().item() for pixels in (view, plain)]
    assert padding == pytest.approx([1 - 20 / 61] * 2, abs=0.06)  # of a crop, and of the whole
    assert_close(view[:, 0, 0], plain[:, 0, 0], 1e-3)
    assert abs(view[0, 0, 0]) < 0.01  # the mean


def test_normalisation_is_the_image_processors():
    processor = new_image_processor(8)
    processor.image_mean, processor.image_std = [0.1, 0.2, 0.3], [0.5, 1.0, 2.0]
    view = TrainTransform(processor)(Image.new("RGB", (30, 20), (0, 51, 255)))
    expected = torch.tensor([(0 - 0.1) / 0.5, (0.2 - 0.2) / 1.0, (1 - 0.3) / 2.0])[:, None, None].expand(3, 8, 8)
    assert_close(view, expected, 1e-6)


def test_views_follow_from_their_generator_alone(photograph):
    transform, image = TrainTransform(new_image_processor(32)), load_photograph(photograph)
    views = []
    for noise, seed in ((1, 5), (2, 5), (2, 6)):
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        generator = torch.Generator().manual_seed(seed)
        views.append(torch.stack([transform(image, generator) for _ in range(8)]))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[1], views[2])


def test_photographs_of_cub(birds20):
    splits = load_splits(birds20)
    assert (len(splits.names), len(splits.train), splits.split) == (20, 589, "test")
    assert find_unreadable(splits.train, num_workers=2) == {}
