"""`promptcam guide`: files, and what a browser shows of them."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from promptcam_hf.modeling import PromptCamForImageClassification

from promptcam_hf.guide.names import write_names
from promptcam_hf.guide.site import make_guide, slugs
from promptcam_hf.messages import counted

from ..command_line import promptcam

# Names are data, not markup: markup, quotes, a script from right to left, 200 letters, a picture
NAMES = ["<script>alert(1)<", 'שחור "קטן" & <b>', "Warbler" * 28 + "Wren", "🦜 O'Parrot & <i>", "Dodo"]
OPTIONS = {"num_workers": 0, "progress": False}


@pytest.fixture(scope="module")
def photos(bird_folder, tmp_path_factory) -> Path:
    """The drawn birds under difficult names."""
    folder = tmp_path_factory.mktemp("photos") / "photos"
    for split in ("train", "test"):
        for name, species in zip(NAMES, sorted((bird_folder / split).iterdir()), strict=False):
            shutil.copytree(species, folder / split / name)
    for number, file in enumerate(sorted((folder / "test" / NAMES[0]).iterdir())[:2]):  # which the model will mistake
        shutil.copy(file, folder / "test" / NAMES[1] / f"mistaken_{number}.jpg")
    return folder


@pytest.fixture(scope="module")
def model(birds_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    shutil.copytree(birds_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": dict(enumerate(NAMES)), "label2id": {name: label for label, name in enumerate(NAMES)}}
    (folder / "config.json").write_text(json.dumps(config))
    assert PromptCamForImageClassification.from_pretrained(folder).config.id2label[0] == NAMES[0]
    return folder


@pytest.fixture(scope="module")
def guide(model, photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("guide") / "guide"
    return folder, make_guide(model, photos, folder, **OPTIONS)


def pages(folder: Path) -> list[Path]:
    return [folder / "index.html", folder / "traits.html", *folder.glob("species/*.html"), *folder.glob("pairs/*.html")]


class Links(HTMLParser):
    """The addresses that a page refers to, and its elements."""

    def __init__(self, page: Path):
        super().__init__()
        self.page, self.addresses, self.images, self.ids, self.tags = page, [], [], set(), []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append((tag, found))
        self.ids.add(found.get("id"))
        self.addresses += [found[name] for name in ("href", "src") if name in found]
        if tag == "img":
            self.images.append(found)


def test_every_link_leads_to_a_file_of_the_guide(guide):
    folder, result = guide
    assert result.num_species == 5
    assert result.num_pairs >= 1
    assert len(pages(folder)) == 2 + 5 + result.num_pairs
    for page in pages(folder):
        links = Links(page)
        for address in links.addresses:
            parts = urlsplit(address)
            if parts.scheme == "data":
                continue
            assert not parts.scheme
            assert not parts.netloc
            target = (page.parent / unquote(parts.path)).resolve()
            assert target.is_file(), address
            assert folder.resolve() in target.parents
            if parts.fragment:
                assert parts.fragment in Links(target).ids
        assert all("alt" in image for image in links.images)
        assert {tag for tag, found in links.tags if tag == "script" and not found.get("src")} == set()
        assert not {tag for tag, _ in links.tags} & {"b", "i"}  # which names would make, were they markup


def test_a_species_without_photographs_has_a_page_that_says_so(guide):
    folder, result = guide
    assert "The data have no photographs of this species." in (folder / "species" / "Dodo.html").read_text()
    assert any("no photographs of Dodo" in note for note in result.notes)


def test_names_that_would_share_a_page_get_their_own():
    notes = []
    assert slugs(["Scott's Oriole", "scott_s oriole", "Scott s Oriole", "鳥", "鸟"], notes) == [
        "Scott_s_Oriole",
        "scott_s_oriole-2",
        "Scott_s_Oriole-3",
        "species",
        "species-2",
    ]
    assert "'scott_s oriole' would have the same page as \"Scott's Oriole\"" in notes[0]
    assert len(notes) == 2
    assert len(slugs(["x" * 300], [])[0]) == 60


def test_another_name_of_a_trait_rewrites_only_what_shows_it(guide, model, photos, tmp_path):
    folder = tmp_path / "guide"
    shutil.copytree(guide[0], folder)
    assert make_guide(model, photos, folder, **OPTIONS).num_written == 0
    texts = {page: page.read_bytes() for page in pages(folder)}
    count = len(list((folder / "traits" / "crops").iterdir()))
    write_names(folder / "traits", {1: 'red "crown" <b>'}, count)
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    make_guide(model, photos, folder, **OPTIONS)
    changed = {file for file, time in before.items() if file.stat().st_mtime_ns != time}
    assert changed == {page for page, text in texts.items() if b"trait 1<" in text}
    assert folder / "traits.html" in changed
    assert "red &#34;crown&#34; &lt;b&gt;" in (folder / "traits.html").read_text()


def test_a_guide_of_fewer_photographs_is_made_from_the_rest(guide, model, photos, tmp_path):
    folder, data = tmp_path / "guide", tmp_path / "photos"
    shutil.copytree(photos, data)
    made = make_guide(model, data, folder, **OPTIONS)
    lost = sorted(data.glob("test/*/*.jpg"))[:4]
    lost[0].write_text("damaged")
    for file in lost[1:]:
        file.unlink()
    result = make_guide(model, data, folder, **OPTIONS)
    assert made.num_species == result.num_species
    assert any(f"{lost[0].name}: not an image" in note for note in result.notes)
    for page in pages(folder):
        for image in Links(page).images:
            assert (page.parent / image["src"]).is_file()


def test_the_command_says_what_it_made(guide, model, photos, tmp_path):
    folder = tmp_path / "guide"
    shutil.copytree(guide[0], folder)
    arguments = ["guide", "--model", model, "--data", photos, "--output-dir", folder]
    result = promptcam(*arguments)
    assert result.exit_code == 0, result.output
    assert f"5 species and {counted(guide[1].num_pairs, 'pair')} in {folder}; 0 files written" in result.output
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    result = promptcam(*arguments[:-1], tmp_path / "mine")
    assert result.exit_code == 1
    assert "mine exists and is not empty; expected a new or empty folder" in result.output


# --- In a browser -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1280, 390])
def test_pages_load_completely_and_ask_for_nothing_else(guide, browser, width):
    folder, _ = guide
    browser.requests.clear()
    for page in pages(folder):
        browser.open(page, width)
        browser.run("for (const image of document.images) image.loading = 'eager'")
        browser.wait_for("[...document.images].every((image) => image.complete)")
        assert browser.run("[...document.images].filter((image) => !image.naturalWidth).map((x) => x.src)") == []
        assert browser.run("document.documentElement.scrollWidth") <= width, page
    assert browser.problems == []
    outside = [x for x in browser.requests if not x.startswith(folder.resolve().as_uri()) and x != "data:,"]
    assert outside == []


def test_search_finds_species_by_part_of_their_name(guide, browser):
    browser.open(guide[0] / "index.html")
    shown = "[...document.querySelectorAll('#species > li')].filter((x) => x.offsetParent).map((x) => x.dataset.name)"
    assert browser.run(shown) == NAMES
    browser.run("document.getElementById('search').focus()")
    browser.call("Input.insertText", text="o'PARR")
    assert browser.run(shown) == [NAMES[3]]
    assert browser.run("document.getElementById('count').textContent") == "1 of 5"
    browser.run("search.select()")
    browser.call("Input.insertText", text="<script>")
    assert browser.run(shown) == [NAMES[0]]


def test_axe_finds_no_serious_violation(guide, browser):
    for dark in (False, True):
        for page in [*pages(guide[0])[:3], pages(guide[0])[-1]]:  # one of each kind
            browser.open(page, dark=dark)
            assert browser.serious_violations() == [], page
