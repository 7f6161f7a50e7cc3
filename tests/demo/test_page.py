"""The words of the page; the page as a whole is tested in `test_run.py`."""

from promptcam_hf.demo.page import joined, look, species_name
from promptcam_hf.demo.species import make_species


def test_words():
    species = {kind.name: kind for kind in make_species(512)}
    common, amber, barred = (species[f"{title}_Finch"] for title in ("Common", "Amber_crowned", "Ivory_barred"))
    mountain = next(kind for kind in species.values() if kind.family == "Mountain_Finch")
    assert (species_name(common), species_name(mountain)) == ("Common Finch", "Common Mountain Finch")
    assert species_name(amber) == "Amber-crowned Finch"
    assert look(amber, "crown") == ("amber crown", "#f0a92b")
    assert (look(amber, "wing_bar"), look(barred, "wing_bar")[0]) == (("no wing bar", None), "ivory wing bar")
    assert look(species["Crested_Finch"], "crown", common)[0] == "cocoa crown (crest)"
    assert [joined(["a", "b", "c"][:count]) for count in (1, 2, 3)] == ["a", "a and b", "a, b and c"]
