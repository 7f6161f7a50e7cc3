"""One bird: the picture, the masks, and the same scene with a change."""

import hashlib
import itertools

import numpy as np
import pytest
from PIL import Image, ImageFilter

from promptcam_hf.demo.drawing import draw_bird, mask_image
from promptcam_hf.demo.species import PARTS, make_species, part_table, random_species, swapped, which_parts_differ

SIZE = 112


def widen(mask: np.ndarray, pixels: int = 1) -> np.ndarray:
    """A mask grown by some pixels: the smoothed edge of a part reaches one pixel beyond it."""
    return np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(2 * pixels + 1))) > 0


class TestDrawing:
    def test_pictures_and_masks_are_the_same_everywhere(self):
        """The shipped weights were trained and measured on them. (Other releases of Pillow and numpy than those of
        constraints.txt may round differently.)"""
        digest = hashlib.sha256()
        for seed, species in enumerate([*make_species(16)[::5], random_species(3)]):
            for without in ((), ("crown",), ("back", "tail")):
                image, masks = draw_bird(species, seed, 96, without=without)
                digest.update(image.tobytes() + np.asarray(mask_image(masks)).tobytes())
        assert digest.hexdigest() == "d00d69e70b23c532f4f1781ccdff6431536e264f6c9fbe4eaa28b4a0d8e15ac7"

    @pytest.mark.parametrize("size", [32, 97, 224])
    def test_picture_and_masks_have_the_size_asked_for(self, size):
        image, masks = draw_bird(make_species(1)[0], 0, size)
        assert (image.mode, image.size) == ("RGB", (size, size))
        assert tuple(masks) == PARTS
        assert all(mask.shape == (size, size) and mask.dtype == bool for mask in masks.values())

    def test_masks_are_disjoint_and_rarely_empty(self):
        species = make_species(32)
        seen = dict.fromkeys(PARTS, 0)
        for seed in range(64):
            masks = draw_bird(species[seed % 32], seed, SIZE)[1]
            assert np.sum(list(masks.values()), axis=0).max() == 1
            for part, mask in masks.items():
                seen[part] += mask.any()
        assert min(seen.values()) >= 60

    def test_bird_is_whole_and_of_a_sensible_height(self):
        for seed, species in enumerate(make_species(32) * 2):
            masks = draw_bird(species, seed, SIZE)[1]
            bird = np.any(list(masks.values()), axis=0)
            border = np.concatenate([bird[0], bird[-1], bird[:, 0], bird[:, -1]])
            assert border.mean() < 0.02
            height = np.ptp(np.flatnonzero(bird.any(axis=1))) / SIZE
            assert 0.35 <= height <= 0.75

    def test_marks_are_about_a_patch_large(self):
        """Typically at least 14 x 14 pixels of a 224 pixel picture for every part that makes a species."""
        species = make_species(32)
        drawings = [draw_bird(kind, seed, 224)[1] for seed, kind in enumerate(species)]
        for part in set(PARTS) - {"eye"}:  # all eyes are alike
            assert np.median([masks[part].sum() for masks in drawings]) > 14 * 14, part

    @pytest.mark.parametrize("start", range(0, 32, 4))
    def test_look_alikes_differ_only_in_the_part_that_tells_them_apart(self, start):
        for a, b in itertools.combinations(make_species(32)[start : start + 4], 2):
            for seed in range(3):
                self.check_pair(a, b, seed)

    def test_a_crest_is_a_difference_of_the_crown(self):
        family = [s for s in make_species(512) if s.family == "Finch"]
        crested = next(s for s in family if s.shapes["crown"] == "crest")
        assert crested.name == "Crested_Finch"
        self.check_pair(crested, family[1], 5)

    @staticmethod
    def check_pair(a, b, seed):
        (first, masks_a), (second, masks_b) = (draw_bird(s, seed, SIZE) for s in (a, b))
        changed = np.any(np.asarray(first) != np.asarray(second), axis=-1)
        parts = which_parts_differ(a, b)
        allowed = np.any([masks[part] for part in parts for masks in (masks_a, masks_b)], axis=0)
        assert (changed & ~widen(allowed)).sum() <= 3  # slivers thinner than a pixel, say between two leaves
        for part in parts:
            assert changed[masks_a[part]].sum() >= 0.9 * masks_a[part].sum()

    def test_pictures_of_one_species_vary(self):
        species = make_species(1)[0]
        centres = []
        for seed in range(20):
            rows, columns = np.nonzero(draw_bird(species, seed, SIZE)[1]["eye"])
            centres.append((rows.mean(), columns.mean()))
        assert (np.std(centres, axis=0) > 0.03 * SIZE).all()

    def test_too_small_a_picture_is_refused(self):
        with pytest.raises(ValueError, match="size=31: expected 32 pixels or more"):
            draw_bird(make_species(1)[0], 0, 31)


class TestInterventions:
    """The same scene with one part removed, recoloured, or as another species has it."""

    species = make_species(16)

    @pytest.mark.parametrize("part", PARTS)
    def test_a_part_that_is_left_out_changes_its_place_alone(self, part):
        for seed, species in enumerate(self.species[::5]):
            image, masks = draw_bird(species, seed, SIZE)
            changed, left = draw_bird(species, seed, SIZE, without=[part])
            differs = np.any(np.asarray(image) != np.asarray(changed), axis=-1)
            # What lay under the part may be lit as background; a beak and legs reach a pixel under other parts
            assert (differs & ~widen(masks[part])).sum() <= 3
            assert left[part].sum() == 0 or part == "back"

    def test_a_mark_that_is_left_out_is_gone(self):
        marked = [species for species in self.species if not species.name.startswith("Common")]
        for seed, species in enumerate(marked):
            (mark,) = part_table(self.species).marks(species.name)
            (image, masks), (changed, _) = (draw_bird(species, seed, SIZE, without=w) for w in ((), [mark]))
            differs = np.any(np.asarray(image) != np.asarray(changed), axis=-1)
            # An ivory wing bar reaches over an ivory belly, which is what then shows
            assert differs[masks[mark]].sum() >= 0.8 * masks[mark].sum()

    def test_swapped_marks_make_one_species_the_other(self):
        for a, b in itertools.permutations(self.species[:4], 2):
            like_b = swapped(a, b, which_parts_differ(a, b))
            assert which_parts_differ(like_b, b) == set()
            assert draw_bird(like_b, 3, 64)[0].tobytes() == draw_bird(b, 3, 64)[0].tobytes()

    def test_unknown_part_is_refused(self):
        with pytest.raises(ValueError, match="without='antler': expected parts, which are crown, "):
            draw_bird(self.species[0], 0, without=["antler"])
