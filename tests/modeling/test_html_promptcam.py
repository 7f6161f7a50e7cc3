"""Explanations as a notebook shows them."""

import re
from html.parser import HTMLParser

import pytest
from promptcam_hf.modeling.explanations_promptcam import Explanations
from promptcam_hf.modeling.html_promptcam import explanations_html
from transformers import pipeline

MARKUP = '<script>alert(1)</script>_"O\'Parrot"'


class Elements(HTMLParser):
    """Elements and text of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def images(self):
        return [found for tag, found in self.elements if tag == "img"]


@pytest.fixture(scope="module")
def traits(checkpoint):
    pipe = pipeline("prompt-cam", model=str(checkpoint), top_traits=3)
    pipe.model.config.id2label[4] = MARKUP
    return pipe


def test_an_answer_shows_itself(traits, photograph):
    answer = traits(photograph, top_k=2)
    page = Elements(answer._repr_html_())
    assert len(page.images()) == 1 + 2 * 3
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in page.images())
    for explanation in answer:
        assert explanation["label"].replace("_", " ") in page.text
        assert f"{explanation['score']:.1%}" in page.text
        shown = [image["alt"] for image in page.images() if image["alt"].startswith(explanation["label"].split("_")[0])]
        assert [re.search(r"head (\d)", alt)[1] for alt in shown] == [str(x["head"]) for x in explanation["traits"]]
    widths = [found["style"] for tag, found in page.elements if found.get("style")]
    assert widths == [f"width: {explanation['score']:.1%}" for explanation in answer]
    (alone,) = traits(photograph)
    assert len(Elements(alone._repr_html_()).images()) == 1 + 3


def test_it_says_how_many_heads_the_answer_needs(traits, photograph):
    (answer,) = traits(photograph, heatmaps=False)
    for count, words in (
        (0, ""),
        (1, " · the first head alone gives this answer"),
        (3, " · the first 3 heads alone give this answer"),
    ):
        page = Elements(explanations_html([answer | {"num_sufficient": count}], None))
        assert f"{answer['score']:.1%}{words}head {answer['traits'][0]['head']}" in page.text


def test_names_are_text(traits, photograph):
    page = Elements(traits(photograph, classes=[4, 3], compare_with=4)._repr_html_())
    assert MARKUP.replace("_", " ") in page.text
    assert {tag for tag, _ in page.elements} <= {
        "style",
        "div",
        "figure",
        "img",
        "figcaption",
        "p",
        "strong",
        "bdi",
        "span",
    }
    assert f"{MARKUP.replace('_', ' ')}: head" in page.images()[1]["alt"]


def test_a_comparison_says_which_colour_speaks_for_whom(traits, photograph):
    page = Elements(traits(photograph, classes=[3], compare_with=0)._repr_html_())
    assert "yellow speaks for Scott Oriole, blue for Baltimore Oriole" in page.text
    assert [image["alt"] for image in page.images()][4] == "Scott Oriole, not Baltimore Oriole: all heads"


def test_without_heatmaps_there_is_text(traits, photograph):
    answer = traits(photograph, heatmaps=False)
    page = Elements(answer._repr_html_())
    assert page.images() == []
    assert ", ".join(f"head {trait['head']}" for trait in answer[0]["traits"]) in page.text
    assert Elements(Explanations([], (1, 1))._repr_html_()).images() == []
