"""The pages: what a visitor sees, and what happens at each click. What is computed is in `session.py`."""

import os
from collections.abc import Callable, Sequence
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any
from uuid import uuid4

import gradio as gr
from PIL import Image

from ..data.class_names import readable
from ..explanation.predictor import PromptCamPredictor
from ..guide.site import slugs
from ..messages import counted, first_line
from ..modeling.html_promptcam import heads_suffice
from ..modeling.images_promptcam import load_photograph
from .batch import MOST_BYTES, MOST_PHOTOGRAPHS, explain_uploads, find_uploads
from .figures import bars, comparison_figures, example_buttons, head_figures, sheet_figures
from .guard import Page, SessionFiles, photograph_input
from .session import Look

HERE = Path(__file__).parent
SHOWN_HEADS = 4
MOST_ERRORS = 20  # listed one by one
BLUR_HINT = "Tick <b>blur</b> under a head to see how probable the class is without it."
PLACE_HINT = "Click a place in a picture to see which heads look there."
EMPTY, OR_EXAMPLE = "Drop, paste or take a photograph.", " Or choose an example:"
ABOUT_HEADS = (
    "The maps show where the model looks to tell one class from the others. A <b>head</b> is a part of the model "
    "that looks on its own. The brighter a place, the more attention it gets. The most important head comes first."
)
ABOUT_COMPARISON = (
    "The maps show what on the photograph speaks for one class, and what for another: first all heads together, "
    "then single heads."
)
# Both sliders work in the browser alone, without the server
SHOW_HEADS = (
    "(count) => { document.getElementById('pc-shown').textContent = "
    "`.pc-heads figure:nth-child(n+${count + 1}) { display: none }` }"
)
SET_OPACITY = "(value) => { document.documentElement.style.setProperty('--map-opacity', value) }"


def in_one_line(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Show a visitor's mistake in one line, and no traceback."""

    @wraps(handler)
    def handle(*args: Any) -> Any:
        try:
            return handler(*args)
        except (ValueError, OSError, FloatingPointError) as error:
            raise gr.Error(escape(first_line(error)), print_exception=False) from None

    return handle


def system_theme() -> gr.themes.Base:
    """Gradio's default look in fonts that the visitor's system has, so that the page loads none; in a teal that is dark
    enough to be read on white, and for white text on it."""
    fonts, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    theme = gr.themes.Default(primary_hue="teal", font=fonts, font_mono=mono)
    return theme.set(
        color_accent="*link_text_color",  # which, unlike the accent, may differ where the page is dark
        link_text_color="*primary_700",
        link_text_color_dark="*primary_500",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
    )


class Pages:
    """
    Builds the page, and handles its events.

    Args:
        predictor: The model, with `maps` above 0.
        files: Where the files of visitors are.
        examples: Photographs to choose from, and their names.
        guide: Folder of a field guide, which is served under `guide/`; None for none.
    """

    def __init__(
        self,
        predictor: PromptCamPredictor,
        files: SessionFiles,
        examples: Sequence[tuple[str, Image.Image]] = (),
        guide: Path | None = None,
    ):
        self.predictor, self.files, self.examples, self.guide = predictor, files, examples, guide
        self.num_heads = predictor.model.num_heads
        self.empty = EMPTY + OR_EXAMPLE * bool(examples)

    def build(self, model: str) -> Page:
        """The page; `model` is what the model is called."""
        choices = [(readable(name), name) for name in self.predictor.names]
        with Page(title=f"Prompt-CAM: {model}", analytics_enabled=False, delete_cache=(600, 3600)) as page:
            about = f"{escape(model)}, {len(choices)} classes, {counted(self.num_heads, 'head')}"
            hidden = f"<style id='pc-shown'>.pc-heads figure:nth-child(n+{SHOWN_HEADS + 1}) {{ display: none }}</style>"
            gr.HTML(f"<h1>Prompt-CAM <small>{about}</small></h1>{hidden}", elem_classes="pc-title")
            with gr.Tab("One photograph"):
                self._one_photograph(choices)
            with gr.Tab("Many photographs"):
                self._many_photographs()
            if self.guide is not None:
                with gr.Tab("Field guide"):
                    self.guide_frame.render()
            page.unload(self.leave)
        return page

    def _one_photograph(self, choices: list[tuple[str, str]]) -> None:
        look = gr.State(None, time_to_live=3600)
        # Made here and shown in a tab of its own, since it follows the photograph
        self.guide_frame = gr.HTML(self.guide_page(None), elem_classes="pc-guide", render=False)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                photo = photograph_input(sources=["upload", "webcam", "clipboard"], label="Photograph", height=300)
                ranking = gr.HTML(f"<p>{self.empty}</p>", elem_classes="pc-note", elem_id="ranking")
                chosen = gr.HTML(
                    example_buttons(self.examples),
                    js_on_load=_script("examples.js"),
                    elem_id="examples",
                    visible=bool(self.examples),
                )
            with gr.Column(scale=5, min_width=320, elem_classes="pc-views"):
                with gr.Tab("Traits"):
                    with gr.Row(elem_classes="pc-controls"):
                        eyes = gr.Dropdown(
                            choices,
                            value=None,
                            label="Through the eyes of",
                            interactive=True,
                            min_width=280,
                            elem_id="eyes",
                        )
                        count = gr.Slider(
                            1, self.num_heads, min(SHOWN_HEADS, self.num_heads), step=1, label="Number of heads"
                        )
                        opacity = gr.Slider(0, 1, 1, step=0.05, label="Map opacity")
                    gr.HTML(f"<p>{ABOUT_HEADS}</p>", elem_classes="pc-note")
                    heads = gr.HTML("", js_on_load=_script("heads.js"), elem_id="heads")
                    with gr.Row(elem_classes="pc-controls"):
                        with gr.Column(min_width=240):
                            blurred = gr.HTML(_hints()[0], elem_classes="pc-note", elem_id="blurred")
                        with gr.Column(min_width=240):
                            place = gr.HTML(_hints()[1], elem_classes="pc-note", elem_id="place")
                with gr.Tab("A, not B"):
                    with gr.Row(elem_classes="pc-controls"):
                        a = gr.Dropdown(choices, value=None, label="What speaks for A", interactive=True, min_width=240)
                        b = gr.Dropdown(choices, value=None, label="and against B", interactive=True, min_width=240)
                    gr.HTML(f"<p>{ABOUT_COMPARISON}</p>", elem_classes="pc-note")
                    comparison = gr.HTML("", elem_id="comparison")
        views = [heads, blurred, place]
        everything = [photo, look, ranking, eyes, *views, a, b, comparison]
        everything += [] if self.guide is None else [self.guide_frame]
        # A click may come before the last one is answered
        quick: dict[str, Any] = {"trigger_mode": "multiple", "show_progress": "hidden", "api_visibility": "private"}
        photo.input(self.examine, [photo], everything, api_visibility="private")
        chosen.choose(self.examine_example, None, everything, api_visibility="private")
        eyes.input(self.explain, [look, eyes], views, api_visibility="private")
        heads.blurring(self.blur, [look, eyes], blurred, **quick)
        heads.place(self.look_there, [look, eyes], place, **quick)
        for choice in (a, b):
            choice.input(self.compare, [look, a, b], comparison, api_visibility="private")
        count.input(None, count, None, js=SHOW_HEADS, api_visibility="private")
        opacity.input(None, opacity, None, js=SET_OPACITY, api_visibility="private")

    def _many_photographs(self) -> None:
        what = "You get a table of the most probable classes, and for each photograph a sheet of maps."
        limits = f"At most {MOST_PHOTOGRAPHS} photographs, and {MOST_BYTES >> 20} MiB a file."
        gr.HTML(f"<p>{what} {limits}</p>", elem_classes="pc-note")
        uploads = gr.File(label="Photographs, or a zip file", file_count="multiple", height=180)
        start = gr.Button("Explain them", variant="primary", elem_id="start")
        summary = gr.HTML("", elem_classes="pc-note", elem_id="summary")
        with gr.Row(elem_classes="pc-results"):
            table = gr.File(label="Table (CSV)", interactive=False, elem_id="table")
            sheets = gr.File(label="Contact sheets (zip)", interactive=False, elem_id="sheets")
        outputs = [summary, table, sheets, gr.HTML("", elem_id="gallery")]
        start.click(self.explain_many, uploads, outputs, concurrency_limit=1, api_visibility="private")

    # --- Events of one photograph -------------------------------------------------------------------------------------

    @in_one_line
    def examine(self, path: str | None, request: gr.Request) -> list[Any]:
        """A photograph was uploaded, taken, pasted or removed."""
        if path is None:
            return self._nothing(self.empty)
        session = str(request.session_hash)
        self.files.uploaded(session, path)
        try:
            photograph = load_photograph(path)
        except ValueError as error:
            reason = f"{os.path.basename(path)}: {first_line(error).removeprefix(f'{path}: ')}"
            gr.Warning(escape(reason))
            return self._nothing(escape(reason))
        return self._shown(Look.at(self.predictor, photograph), session)

    @in_one_line
    def examine_example(self, event: gr.EventData, request: gr.Request) -> list[Any]:
        """An example was chosen."""
        _, photograph = self.examples[int(event.number)]
        return self._shown(Look.at(self.predictor, photograph), str(request.session_hash))

    @in_one_line
    def explain(self, look: Look | None, label: str) -> list[Any]:
        """Another class was chosen to look with."""
        return ["" if look is None else head_figures(look.photograph, look.explained(label)), *_hints()]

    @in_one_line
    def blur(self, look: Look | None, label: str, event: gr.EventData) -> str:
        """Heads were blurred, or sharpened again."""
        heads = [int(head) for head in event.heads]
        if look is None or not heads:
            return f"<p>{BLUR_HINT}</p>"
        before, after = dict(look.ranking())[label], look.blurred(label, heads)
        names = f"{'heads' if len(heads) > 1 else 'head'} {', '.join(map(str, sorted(heads)))}"
        moved = f"{escape(readable(label))}: {before:.1%} → <b>{dict(after)[label]:.1%}</b> without {names}"
        return bars(after, moved, most=3)

    @in_one_line
    def look_there(self, look: Look | None, label: str, event: gr.EventData) -> str:
        """A place was clicked."""
        if look is None:
            return f"<p>{PLACE_HINT}</p>"
        shares = look.looking_at(label, *(min(max(float(value), 0.0), 1.0) for value in (event.x, event.y)))
        even = 1 / look.num_patches
        about = f"Of the attention of each head, this place gets (spread evenly, it would be {even:.1%}):"
        return bars([(f"head {head}", share) for head, share in shares], about, most=3, full=max(even, shares[0][1]))

    @in_one_line
    def compare(self, look: Look | None, a: str, b: str) -> str:
        """Other classes were chosen to compare."""
        if look is None:
            return ""
        if a == b:
            raise ValueError("A and B are the same class; choose two.")
        return comparison_figures(look.photograph, look.explained(a, b))

    def _shown(self, look: Look, session: str) -> list[Any]:
        """What the page shows of a photograph, in the order of `everything`."""
        file = self.files.folder(session) / f"{uuid4().hex}.jpg"
        look.photograph.save(file, quality=92)
        ranking = look.ranking()
        (best, _), (second, _) = ranking[:2]
        explanation = look.explained(best, second)
        figures, compared = (draw(look.photograph, explanation) for draw in (head_figures, comparison_figures))
        enough = heads_suffice(explanation["num_sufficient"])
        caption = enough and f"{enough.capitalize()}."
        page = [] if self.guide is None else [self.guide_page(best)]
        return [str(file), look, bars(ranking, caption), best, figures, *_hints(), best, second, compared, *page]

    def _nothing(self, message: str) -> list[Any]:
        """What the page shows without a photograph, in the order of `everything`."""
        page = [] if self.guide is None else [self.guide_page(None)]
        return [None, None, f"<p>{message}</p>", None, "", *_hints(), None, None, "", *page]

    def guide_page(self, label: str | None) -> str:
        """The field guide, at the page of a species if it has one."""
        if self.guide is None:
            return ""
        names, page = self.predictor.names, "index.html"
        if label is not None:
            species = f"species/{slugs(names, [])[names.index(label)]}.html"
            page = species if (self.guide / species).is_file() else page
        return f'<iframe src="guide/{page}" title="Field guide"></iframe>'

    def leave(self, request: gr.Request) -> None:
        """A visitor has closed the page."""
        self.files.forget(str(request.session_hash))

    # --- Events of many photographs -----------------------------------------------------------------------------------

    @in_one_line
    def explain_many(
        self,
        paths: list[str] | None,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[Any]:
        """The photographs of an upload are to be explained."""
        session = str(request.session_hash)
        self.files.uploaded(session, *(paths or []))
        sources = find_uploads(paths or [])
        folder = self.files.folder(session) / uuid4().hex
        folder.mkdir()
        progress((0, len(sources)), unit="photographs")
        result = explain_uploads(
            self.predictor, sources, folder, lambda done: progress((done, len(sources)), unit="photographs")
        )
        lines = [f"<li>{escape(reason)}</li>" for reason in result.errors[:MOST_ERRORS]]
        unread = f" {len(result.errors)} could not be read:<ul>{''.join(lines)}</ul>" if lines else ""
        summary = f"<p>{counted(result.num_photographs, 'photograph')}.{unread}</p>"
        return [summary, str(result.table), result.sheets and str(result.sheets), sheet_figures(result.gallery)]


def _script(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _hints() -> tuple[str, str]:
    return f"<p>{BLUR_HINT}</p>", f"<p>{PLACE_HINT}</p>"
