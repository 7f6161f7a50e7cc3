"""Datasets of drawn birds."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from promptcam_hf.data.parts import PartTable, read_mask
from promptcam_hf.demo import dataset
from promptcam_hf.demo.dataset import bird_dataset, scene_seed, write_image_folder
from promptcam_hf.demo.drawing import draw_bird, mask_image
from promptcam_hf.demo.species import PARTS, make_species


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in sorted(directory.rglob("*.jpg"))}


class TestDataset:
    def test_rows_can_be_drawn_again(self):
        birds = bird_dataset(num_classes=3, per_class=2, size=48, seed=1, split="test")
        species = make_species(3)
        assert birds.features["label"].names == [s.name for s in species]
        assert birds["label"] == [0, 0, 1, 1, 2, 2]
        assert len(set(birds["seed"])) == 6
        for row in birds:
            image, masks = draw_bird(species[row["label"]], row["seed"], 48)
            assert row["image"].tobytes() == image.tobytes()
            assert np.array_equal(np.asarray(row["parts"]), np.asarray(mask_image(masks)))

    def test_splits_and_seeds_share_no_picture(self):
        seeds = [set(bird_dataset(2, 3, 32, seed, split)["seed"]) for seed in (0, 1) for split in ("train", "test")]
        assert len(set.union(*seeds)) == 4 * 6


class TestImageFolder:
    def write(self, directory, **options):
        settings = {
            "num_classes": 3,
            "train_per_class": 2,
            "test_per_class": 1,
            "size": 48,
            "progress": False,
        } | options
        return write_image_folder(directory, **settings)

    def test_layout(self, tmp_path):
        names = [s.name for s in self.write(tmp_path / "new" / "birds")]
        files = files_of(tmp_path / "new" / "birds")
        wanted = (("test", 0), ("train", 0), ("train", 1))
        expected = [f"{split}/{name}/{i:05d}.jpg" for split, i in wanted for name in names]
        assert sorted(files) == sorted(expected)
        with Image.open(tmp_path / "new" / "birds" / expected[0]) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (48, 48))

    def test_same_arguments_give_the_same_bytes(self, tmp_path):
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            self.write(tmp_path / name, seed=seed)
        a, b, c = (files_of(tmp_path / name) for name in "abc")
        assert a == b
        assert not set(a.values()) & set(c.values())

    def test_more_pictures_and_classes_keep_the_first_ones(self, tmp_path):
        self.write(tmp_path / "small")
        self.write(tmp_path / "large", num_classes=4, train_per_class=3, test_per_class=2)
        assert files_of(tmp_path / "small").items() <= files_of(tmp_path / "large").items()

    def test_no_two_pictures_share_a_seed(self, tmp_path, monkeypatch):
        seeds = []
        monkeypatch.setattr(
            dataset, "draw_bird", lambda s, seed, size: (seeds.append(seed), draw_bird(s, seed, size))[1]
        )
        self.write(tmp_path / "a", seed=0)
        self.write(tmp_path / "b", seed=1)
        assert len(set(seeds)) == len(seeds) == 18

    def test_test_pictures_come_with_masks_and_interventions(self, tmp_path):
        species = self.write(tmp_path / "birds", test_per_class=2, interventions_per_class=1)
        table = PartTable.load(tmp_path / "birds")
        assert table.names == PARTS
        common, amber, scarlet = (s.name for s in species)
        assert table.marks(amber) == {"crown"}
        assert table.distinguishing(common) == {"crown"}
        _, masks = draw_bird(species[1], scene_seed(0, "test", 1, 1), 48)
        values = read_mask(tmp_path / "birds" / "test_parts" / amber / "00001.png")
        assert all(np.array_equal(values == place, masks[part]) for place, part in enumerate(PARTS, start=1))

        without = sorted(path.parts[-3:] for path in (tmp_path / "birds" / "test_without").rglob("*.jpg"))
        assert without == sorted((part, s.name, "00000.jpg") for part in PARTS for s in species)
        swapped = {path.parts[-3:-1] for path in (tmp_path / "birds" / "test_swapped").rglob("*.jpg")}
        assert swapped == set(itertools.permutations((common, amber, scarlet), 2))

    def test_a_directory_with_files_is_refused_and_left_alone(self, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(ValueError, match="is not empty; expected a new or empty folder"):
            self.write(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    @pytest.mark.parametrize(
        "options",
        [{"interventions_per_class": -1}, {"train_per_class": -1}, {"seed": -1}, {"size": 8}, {"num_classes": 0}],
    )
    def test_wrong_arguments_are_refused_before_anything_is_written(self, tmp_path, options):
        with pytest.raises(ValueError, match="expected"):
            self.write(tmp_path / "birds", **options)
        assert not (tmp_path / "birds").exists()

    def test_progress_goes_to_standard_error(self, tmp_path, capsys):
        self.write(tmp_path / "birds", progress=True)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "9/9" in captured.err

    def test_nothing_is_left_of_a_folder_that_cannot_be_finished(self, tmp_path, monkeypatch):
        monkeypatch.setattr(dataset, "_interventions", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            self.write(tmp_path / "birds", interventions_per_class=1)
        assert not any((tmp_path / "birds").iterdir())

    def test_command_line(self, tmp_path, monkeypatch, capsys):
        arguments = ["birds", "--classes", "2", "--train", "1", "--test", "1", "--size", "32"]
        command = [sys.executable, "-m", dataset.__name__, *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0
        assert "Warning" not in done.stderr
        assert len(files_of(tmp_path / "birds")) == 4

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["dataset.py", *arguments])
        with pytest.raises(SystemExit) as exit:
            dataset.main()
        assert exit.value.code == 1
        assert capsys.readouterr().err == "error: birds exists and is not empty; expected a new or empty folder.\n"
