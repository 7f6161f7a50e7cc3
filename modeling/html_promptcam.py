"""Explanations as HTML: in notebooks, and on the page of `promptcam explain --html`.

Everything is in the text itself: no scripts, no fonts, no files. Text takes the colour of what is around it, so that it
can be read on light and on dark pages.
"""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from .images_promptcam import data_uri, draw_comparison, draw_heatmap, reduced

PICTURE_SIDE = 320  # longest side of a picture in pixels, at most
SHOWN_SIDE = 160  # the same as it is shown: half of that, for sharp screens

STYLE = """
.promptcam { display: flex; flex-wrap: wrap; gap: 1rem; font: 14px/1.45 system-ui, sans-serif; text-align: left }
.promptcam figure { margin: 0; width: min-content }
.promptcam img { display: block; max-width: none; margin: 0; border-radius: 4px }
.promptcam figcaption { font-size: 12px; margin: .15rem 0 0; overflow-wrap: anywhere }
.promptcam > div { flex: 1 1 18rem; min-width: 0 }
.promptcam p { margin: 0 0 .4rem; overflow-wrap: anywhere }
.promptcam-bar { display: block; height: .45rem; margin: .15rem 0 .1rem; border-radius: 1rem; max-width: 36rem;
  background: rgba(128, 128, 128, .28); overflow: hidden }
.promptcam-bar span { display: block; height: 100%; background: #2a8c82 }
.promptcam-heads { display: flex; flex-wrap: wrap; gap: .6rem; margin: 0 0 1rem }
"""


def explanations_html(explanations: Sequence[dict[str, Any]], photograph: Image.Image | None) -> str:
    """
    A photograph beside its explained classes: name, probability as a bar, and the most important heads.

    Args:
        explanations: Of the photograph, as `pipeline("prompt-cam")` returns them. Heatmaps are not needed: small ones
            are drawn anew.
        photograph: The photograph, of any size; None for text without pictures.

    Returns:
        HTML that needs `STYLE` once on its page. Names of classes are escaped.
    """
    small = None if photograph is None else reduced(photograph, PICTURE_SIDE)
    own = "" if small is None else _figure(small, "The photograph", "photograph")
    return f'<div class="promptcam">{own}<div>{"".join(_one(item, small) for item in explanations)}</div></div>'


def _one(explanation: dict[str, Any], small: Image.Image | None) -> str:
    """An explained class."""
    label, score, sufficient = explanation["label"], explanation["score"], explanation["num_sufficient"]
    enough = f" · {heads_suffice(sufficient)}" if sufficient else ""
    html = (
        f"<p><strong>{_name(label)}</strong> {score:.1%}{enough}"
        f'<span class="promptcam-bar"><span style="width: {score:.1%}"></span></span></p>'
        + _heads(explanation["traits"], _words(label), small, draw_heatmap)
    )
    if "comparison" in explanation:
        comparison = explanation["comparison"]
        rival = comparison["label"]
        html += (
            f"<p>Compared with <strong>{_name(rival)}</strong> {comparison['score']:.1%}: "
            f"yellow speaks for {_name(label)}, blue for {_name(rival)}</p>"
        )
        whole = [{"head": None, "map": comparison["map"]}, *comparison["traits"]]
        html += _heads(whole, f"{_words(label)}, not {_words(rival)}", small, draw_comparison)
    return html


def _heads(traits: Sequence[dict[str, Any]], label: str, small: Image.Image | None, draw: Callable) -> str:
    """The maps of heads, the most important first. A head of None stands for the sum over all heads."""
    names = [_head(trait) for trait in traits]
    if small is None:
        return f"<p>{', '.join(escape(name) for name in names)}</p>"
    pictures = [draw(small, np.asarray(trait["map"])) for trait in traits]
    figures = [_figure(picture, f"{label}: {name}", name) for picture, name in zip(pictures, names, strict=True)]
    return f'<div class="promptcam-heads">{"".join(figures)}</div>'


def _head(trait: dict[str, Any]) -> str:
    """What to call a head: by its number and, if a vocabulary has one, the name of what it shows."""
    head = "all heads" if trait["head"] is None else f"head {trait['head']}"
    return f"{trait['trait']} · {head}" if trait.get("trait") else head


def _figure(picture: Image.Image, description: str, caption: str) -> str:
    """A picture whose file is in the page."""
    width, height = (max(1, round(side * SHOWN_SIDE / max(picture.size))) for side in picture.size)
    image = (
        f'<img src="{data_uri(picture)}" alt="{escape(description)}" width="{width}" height="{height}" loading="lazy">'
    )
    return f"<figure>{image}<figcaption><bdi>{escape(caption)}</bdi></figcaption></figure>"


def heads_suffice(count: int) -> str:
    """How many of the most important heads suffice, in words: all others may be blurred. Empty if it is 0."""
    heads = "head alone gives" if count == 1 else f"{count} heads alone give"
    return f"the first {heads} this answer" if count else ""


def _words(label: str) -> str:
    return label.replace("_", " ")


def _name(label: str) -> str:
    """A class name as HTML that neither becomes markup nor turns the direction of what follows."""
    return f"<bdi>{escape(_words(label))}</bdi>"
