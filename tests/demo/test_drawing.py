"""Tests of the synthetic birds: what a user of the pictures, the masks and the image folder relies on."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

import promptcam_hf.demo.drawing as birds
from promptcam_hf.data.parts import PartTable, read_mask

SIZE = 112


def widen(mask: np.ndarray, pixels: int = 1) -> np.ndarray:
    """A mask grown by some pixels: the smoothed edge of a part reaches one pixel beyond it."""
    return np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(2 * pixels + 1))) > 0


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in sorted(directory.rglob("*.jpg"))}


class TestSpecies:
    def test_names_are_unique_and_fit_a_folder(self):
        names = [s.name for s in birds.make_species(512)]
        assert len(set(names)) == 512
        assert all(name.replace("_", "").isalpha() and name[0].isupper() for name in names)

    def test_list_only_grows_at_its_end(self):
        assert birds.make_species(300)[:37] == birds.make_species(37)

    def test_every_part_has_a_known_colour(self):
        for species in birds.make_species(512):
            assert set(species.colours) == set(species.shapes) == set(birds.PARTS)
            assert set(species.colours.values()) <= set(birds.COLOURS)

    def test_relatives_differ_in_one_or_two_parts(self):
        ordered = sorted(birds.make_species(512), key=lambda s: s.family)
        for _, family in itertools.groupby(ordered, key=lambda s: s.family):
            pairs = list(itertools.combinations(family, 2))
            assert len(pairs) == 28
            assert {len(birds.which_parts_differ(a, b)) for a, b in pairs} <= {1, 2}

    def test_families_differ_in_more_parts(self):
        for a, b in itertools.combinations(birds.make_species(256), 2):
            if a.family != b.family:
                assert len(birds.which_parts_differ(a, b)) >= 3

    def test_per_family_sets_the_number_of_look_alikes(self):
        species = birds.make_species(8, per_family=2)
        assert [s.family for s in species[::2]] == [s.family for s in species[1::2]]
        assert len({s.family for s in species}) == 4

    def test_which_parts_differ_names_the_marks(self):
        by_name = {s.name: s for s in birds.make_species(8)}
        amber, scarlet = by_name["Amber_crowned_Finch"], by_name["Scarlet_crowned_Finch"]
        assert birds.which_parts_differ(amber, amber) == set()
        assert birds.which_parts_differ(amber, scarlet) == {"crown"}
        assert birds.which_parts_differ(amber, by_name["Ivory_barred_Finch"]) == {"crown", "wing_bar"}

    @pytest.mark.parametrize(("count", "per_family"), [(0, 4), (513, 4), (4, 0), (4, 9)])
    def test_impossible_requests_are_refused(self, count, per_family):
        with pytest.raises(ValueError, match=r"need num_classes|only 512"):
            birds.make_species(count, per_family)


class TestDrawing:
    def test_same_species_and_seed_give_the_same_picture_and_masks(self):
        species = birds.make_species(1)[0]
        (first, masks), (second, again) = (birds.draw_bird(species, 7, SIZE) for _ in range(2))
        assert first.tobytes() == second.tobytes()
        assert all(np.array_equal(masks[part], again[part]) for part in birds.PARTS)
        assert first.tobytes() != birds.draw_bird(species, 8, SIZE)[0].tobytes()

    @pytest.mark.parametrize("size", [32, 97, 224])
    def test_picture_and_masks_have_the_size_asked_for(self, size):
        image, masks = birds.draw_bird(birds.make_species(1)[0], 0, size)
        assert (image.mode, image.size) == ("RGB", (size, size))
        assert tuple(masks) == birds.PARTS
        assert all(mask.shape == (size, size) and mask.dtype == bool for mask in masks.values())

    def test_masks_are_disjoint_and_rarely_empty(self):
        species = birds.make_species(32)
        seen = dict.fromkeys(birds.PARTS, 0)
        for seed in range(64):
            masks = birds.draw_bird(species[seed % 32], seed, SIZE)[1]
            assert np.sum(list(masks.values()), axis=0).max() == 1
            for part, mask in masks.items():
                seen[part] += mask.any()
        assert min(seen.values()) >= 60

    def test_bird_is_whole_and_of_a_sensible_height(self):
        for seed, species in enumerate(birds.make_species(32) * 2):
            masks = birds.draw_bird(species, seed, SIZE)[1]
            bird = np.any(list(masks.values()), axis=0)
            border = np.concatenate([bird[0], bird[-1], bird[:, 0], bird[:, -1]])
            assert border.mean() < 0.02
            height = np.ptp(np.flatnonzero(bird.any(axis=1))) / SIZE
            assert 0.35 <= height <= 0.75

    def test_marks_are_about_a_patch_large(self):
        """Typically at least 14 x 14 pixels of a 224 pixel picture for every part that makes a species."""
        species = birds.make_species(32)
        drawings = [birds.draw_bird(kind, seed, 224)[1] for seed, kind in enumerate(species)]
        for part in set(birds.PARTS) - {"eye"}:  # all eyes are alike
            assert np.median([masks[part].sum() for masks in drawings]) > 14 * 14, part

    @pytest.mark.parametrize("start", range(0, 32, 4))
    def test_look_alikes_differ_only_in_the_part_that_tells_them_apart(self, start):
        for a, b in itertools.combinations(birds.make_species(32)[start : start + 4], 2):
            for seed in range(3):
                self.check_pair(a, b, seed)

    def test_a_crest_is_a_difference_of_the_crown(self):
        family = [s for s in birds.make_species(512) if s.family == "Finch"]
        crested = next(s for s in family if s.shapes["crown"] == "crest")
        assert crested.name == "Crested_Finch"
        self.check_pair(crested, family[1], 5)

    @staticmethod
    def check_pair(a, b, seed):
        (first, masks_a), (second, masks_b) = (birds.draw_bird(s, seed, SIZE) for s in (a, b))
        changed = np.any(np.asarray(first) != np.asarray(second), axis=-1)
        parts = birds.which_parts_differ(a, b)
        allowed = np.any([masks[part] for part in parts for masks in (masks_a, masks_b)], axis=0)
        assert (changed & ~widen(allowed)).sum() <= 3  # slivers thinner than a pixel, say between two leaves
        for part in parts:
            assert changed[masks_a[part]].sum() >= 0.9 * masks_a[part].sum()

    def test_pictures_of_one_species_vary(self):
        species = birds.make_species(1)[0]
        centres = []
        for seed in range(20):
            rows, columns = np.nonzero(birds.draw_bird(species, seed, SIZE)[1]["eye"])
            centres.append((rows.mean(), columns.mean()))
        assert (np.std(centres, axis=0) > 0.03 * SIZE).all()

    def test_too_small_a_picture_is_refused(self):
        with pytest.raises(ValueError, match="at least 32"):
            birds.draw_bird(birds.make_species(1)[0], 0, 31)


class TestInterventions:
    """The same scene with one part removed, recoloured, or as another species has it."""

    species = birds.make_species(16)

    @pytest.mark.parametrize("part", birds.PARTS)
    def test_a_part_that_is_left_out_changes_its_place_alone(self, part):
        for seed, species in enumerate(self.species[::5]):
            image, masks = birds.draw_bird(species, seed, SIZE)
            changed, left = birds.draw_bird(species, seed, SIZE, without=[part])
            differs = np.any(np.asarray(image) != np.asarray(changed), axis=-1)
            # What lay under the part may be lit as background; a beak and legs reach a pixel under other parts
            assert (differs & ~widen(masks[part])).sum() <= 3
            assert left[part].sum() == 0 or part == "back"

    def test_a_mark_that_is_left_out_is_gone(self):
        marked = [species for species in self.species if not species.name.startswith("Common")]
        for seed, species in enumerate(marked):
            (mark,) = birds.part_table(self.species).marks(species.name)
            (image, masks), (changed, _) = (birds.draw_bird(species, seed, SIZE, without=w) for w in ((), [mark]))
            differs = np.any(np.asarray(image) != np.asarray(changed), axis=-1)
            # An ivory wing bar reaches over an ivory belly, which is what then shows
            assert differs[masks[mark]].sum() >= 0.8 * masks[mark].sum()

    def test_swapped_marks_make_one_species_the_other(self):
        for a, b in itertools.permutations(self.species[:4], 2):
            like_b = birds.swapped(a, b, birds.which_parts_differ(a, b))
            assert birds.which_parts_differ(like_b, b) == set()
            assert birds.draw_bird(like_b, 3, 64)[0].tobytes() == birds.draw_bird(b, 3, 64)[0].tobytes()

    def test_recoloured_part_is_the_only_one_that_differs(self):
        species = self.species[0]
        assert birds.which_parts_differ(birds.recoloured(species, "legs", "azure"), species) == {"legs"}

    def test_unknown_part_is_refused(self):
        with pytest.raises(ValueError, match="without='antler': expected parts, which are crown, "):
            birds.draw_bird(self.species[0], 0, without=["antler"])


class TestDataset:
    def test_rows_can_be_drawn_again(self):
        dataset = birds.bird_dataset(num_classes=3, per_class=2, size=48, seed=1, split="test")
        species = birds.make_species(3)
        assert dataset.features["label"].names == [s.name for s in species]
        assert dataset["label"] == [0, 0, 1, 1, 2, 2]
        assert len(set(dataset["seed"])) == 6
        for row in dataset:
            image, masks = birds.draw_bird(species[row["label"]], row["seed"], 48)
            assert row["image"].tobytes() == image.tobytes()
            assert np.array_equal(np.asarray(row["parts"]), np.asarray(birds.mask_image(masks)))

    def test_splits_and_seeds_share_no_picture(self):
        seeds = [
            set(birds.bird_dataset(2, 3, 32, seed, split)["seed"]) for seed in (0, 1) for split in ("train", "test")
        ]
        assert len(set.union(*seeds)) == 4 * 6

    def test_species_made_up_at_random_are_none_of_the_known(self):
        known = birds.make_species(512)
        for seed in range(50):
            species = birds.random_species(seed)
            assert birds.random_species(seed) == species
            assert set(species.colours.values()) <= set(birds.COLOURS)
            assert all(birds.which_parts_differ(species, other) for other in known)


class TestImageFolder:
    def write(self, directory, **options):
        settings = {
            "num_classes": 3,
            "train_per_class": 2,
            "test_per_class": 1,
            "size": 48,
            "progress": False,
        } | options
        return birds.write_image_folder(directory, **settings)

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
        draw = birds.draw_bird
        monkeypatch.setattr(birds, "draw_bird", lambda s, seed, size: (seeds.append(seed), draw(s, seed, size))[1])
        self.write(tmp_path / "a", seed=0)
        self.write(tmp_path / "b", seed=1)
        assert len(set(seeds)) == len(seeds) == 18

    def test_test_pictures_come_with_masks_and_interventions(self, tmp_path):
        species = self.write(tmp_path / "birds", test_per_class=2, interventions_per_class=1)
        table = PartTable.load(tmp_path / "birds")
        assert table.names == birds.PARTS
        common, amber, scarlet = (s.name for s in species)
        assert table.marks(amber) == {"crown"}
        assert table.distinguishing(common) == {"crown"}
        _, masks = birds.draw_bird(species[1], birds.scene_seed(0, "test", 1, 1), 48)
        values = read_mask(tmp_path / "birds" / "test_parts" / amber / "00001.png")
        assert all(np.array_equal(values == place, masks[part]) for place, part in enumerate(birds.PARTS, start=1))

        without = sorted(path.parts[-3:] for path in (tmp_path / "birds" / "test_without").rglob("*.jpg"))
        assert without == sorted((part, s.name, "00000.jpg") for part in birds.PARTS for s in species)
        swapped = {path.parts[-3:-1] for path in (tmp_path / "birds" / "test_swapped").rglob("*.jpg")}
        assert swapped == set(itertools.permutations((common, amber, scarlet), 2))

    def test_a_directory_with_files_is_refused_and_left_alone(self, tmp_path):
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(FileExistsError, match="not an empty directory"):
            self.write(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    @pytest.mark.parametrize(
        "options",
        [{"interventions_per_class": -1}, {"train_per_class": -1}, {"seed": -1}, {"size": 8}, {"num_classes": 0}],
    )
    def test_wrong_arguments_are_refused_before_anything_is_written(self, tmp_path, options):
        with pytest.raises(ValueError, match=r"need|at least"):
            self.write(tmp_path / "birds", **options)
        assert not (tmp_path / "birds").exists()

    def test_progress_goes_to_standard_error(self, tmp_path, capsys):
        self.write(tmp_path / "birds", progress=True)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "9/9" in captured.err

    def test_command_line(self, tmp_path):
        arguments = ["birds", "--classes", "2", "--train", "1", "--test", "1", "--size", "32"]
        command = [sys.executable, "-m", birds.__name__, *arguments]
        first, second = (subprocess.run(command, cwd=tmp_path, capture_output=True, text=True) for _ in range(2))
        assert first.returncode == 0
        assert len(files_of(tmp_path / "birds")) == 4
        assert second.returncode == 2
        assert "not an empty directory" in second.stderr
        assert "Traceback" not in second.stderr
