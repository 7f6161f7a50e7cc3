"""The species: how they look, and what tells them apart."""

import itertools

import pytest

from promptcam_hf.demo.species import (
    COLOURS,
    PARTS,
    SHAPES,
    make_species,
    random_species,
    recoloured,
    which_parts_differ,
)


def test_names_are_unique_and_fit_a_folder():
    names = [s.name for s in make_species(512)]
    assert len(set(names)) == 512
    assert all(name.replace("_", "").isalpha() and name[0].isupper() for name in names)


def test_list_only_grows_at_its_end():
    assert make_species(300)[:37] == make_species(37)


def test_every_part_has_a_known_colour_and_shape():
    for species in [*make_species(512), *map(random_species, range(50))]:
        assert set(species.colours) == set(species.shapes) == set(PARTS)
        assert set(species.colours.values()) <= set(COLOURS)
        assert all(shape in SHAPES.get(part, ("",)) for part, shape in species.shapes.items())


def test_look_alikes_differ_in_one_or_two_parts():
    ordered = sorted(make_species(512), key=lambda s: s.family)
    for _, family in itertools.groupby(ordered, key=lambda s: s.family):
        pairs = list(itertools.combinations(family, 2))
        assert len(pairs) == 28
        assert {len(which_parts_differ(a, b)) for a, b in pairs} <= {1, 2}


def test_families_differ_in_three_parts_or_more():
    for a, b in itertools.combinations(make_species(256), 2):
        if a.family != b.family:
            assert len(which_parts_differ(a, b)) >= 3


def test_which_parts_differ_names_the_marks():
    by_name = {s.name: s for s in make_species(8)}
    amber, scarlet = by_name["Amber_crowned_Finch"], by_name["Scarlet_crowned_Finch"]
    assert which_parts_differ(amber, amber) == set()
    assert which_parts_differ(amber, scarlet) == {"crown"}
    assert which_parts_differ(amber, by_name["Ivory_barred_Finch"]) == {"crown", "wing_bar"}


@pytest.mark.parametrize("count", [0, 513])
def test_impossible_number_is_refused(count):
    with pytest.raises(ValueError, match=f"num_classes={count}: expected 1 to 512"):
        make_species(count)


def test_random_species_are_none_of_the_known():
    known = make_species(512)
    for seed in range(50):
        species = random_species(seed)
        assert random_species(seed) == species
        assert all(which_parts_differ(species, other) for other in known)


def test_recoloured_part_is_the_only_one_that_differs():
    species = make_species(1)[0]
    assert which_parts_differ(recoloured(species, "legs", "azure"), species) == {"legs"}
