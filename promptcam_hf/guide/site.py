"""Make a field guide: `promptcam guide`, as a Python function. The output folder is a website without a server:

    index.html                 all species, with a search
    traits.html                all traits, and which species have them
    species/<name>.html        a species: photographs, traits, what it is mistaken for
    pairs/<name>--<name>.html  two species that the model mistakes for each other
    images/, style.css, search.js, guide.json
    traits/                    the vocabulary, unless another folder is given; see `traits.py`

Pages and pictures whose content is the same are not written again.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm.auto import tqdm

from ..checkpoint import open_pipeline
from ..data.photographs import Photographs
from ..devices import number_of_workers
from ..evaluation.prediction import class_names
from ..files import check_new_folder, write_atomically, writing_to
from ..messages import check_counts, check_installed, listed
from ..modeling import PromptCamPipeline
from ..modeling.images_promptcam import draw_comparison, reduced
from .names import display_name, read_names
from .pictures import READ_AT, crop, save_picture
from .records import Example, Record, confusable_pairs, read_records
from .templating import TEMPLATES, environment
from .traits import CROPS, earlier_vocabulary, find_traits, read_state
from .viewing import BATCH_SIZE, load_photographs, photograph_state
from .vocabulary import Vocabulary

INDEX, TRAITS, STYLE, SEARCH = "index.html", "traits.html", "style.css", "search.js"
RECORD = "guide.json"  # says that a folder is a guide
THUMBNAIL = 320  # pixels, the longer side
DIFFERS = 0.2  # difference of shares from which on a trait tells two species apart
LONGEST_SLUG = 60
PAIR_EXAMPLES = 3  # photographs of each species of a pair that are named correctly


@dataclass(eq=False)
class GuideResult:
    """
    What `make_guide` has written.

    Args:
        num_species, num_pairs: Numbers of pages.
        num_written: Files that were written; the others were the same before.
        notes: What is missing or was changed, in words.
    """

    num_species: int
    num_pairs: int
    num_written: int
    notes: list[str]


def make_guide(
    model: str | os.PathLike,
    data: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    traits: str | os.PathLike | None = None,
    batch_size: int = BATCH_SIZE,
    num_workers: int | None = None,
    device: str | int | None = None,
    backbone: str | os.PathLike | None = None,
    progress: bool = True,
) -> GuideResult:
    """
    Make a field guide of the species of a model, as docs/field_guide.md shows it. A run that was interrupted
    continues.

    Args:
        model: Checkpoint folder or Hub id.
        data: The data, as for `load_splits`.
        output_dir: A new or empty folder, or that of an earlier guide, which is brought up to date.
        traits: The folder of `promptcam traits`. It is made if there is none, and made anew if the model or the
            photographs have changed. Default: `traits/` in the output folder.
        batch_size, num_workers, device, backbone, progress: As for `make_traits`.

    Returns:
        What was written. Photographs that cannot be read are left out.

    Raises:
        ValueError: If an argument is out of range, the folder holds something else, the checkpoint or the data cannot
            be read, or `names.csv` has an error.
        ModuleNotFoundError: If scikit-learn is not installed (extra `guide`).
        FloatingPointError: If the model's scores are not finite.
        OSError: If a file cannot be written.
    """
    check_installed("guide", "sklearn")
    folder = Path(output_dir)
    source = folder / "traits" if traits is None else Path(traits)
    check_counts(batch_size=batch_size)
    if not (folder / RECORD).is_file():
        check_new_folder(folder)
    old, asked = earlier_vocabulary(source), read_state(source)
    pipe = open_pipeline(model, heatmaps=False, device=device, backbone=backbone)
    splits, names = load_photographs(pipe, data), class_names(pipe.model)
    _prepare(folder)
    options: dict[str, Any] = {"batch_size": batch_size, "num_workers": number_of_workers(num_workers)}
    options |= {"parts": asked.get("parts"), "looks": asked.get("looks"), "progress": progress}
    made = find_traits(pipe, splits, data, source, old, **options)
    given = read_names(source, len(made.vocabulary))
    words = [display_name(given, trait) for trait in range(1, len(made.vocabulary) + 1)]
    records = read_records(source, len(names), list(splits)[-1])
    notes = [f"left out: {reason}" for reason in made.unreadable]
    notes += [f"no trait is like {name!r} any more" for name in made.lost_names]
    if without := [name for name, record in zip(names, records, strict=True) if not record.num_photographs]:
        notes.append(f"no photographs of {listed(without)}; their pages say so.")
    state = json.dumps(read_state(source))
    site = _Site(folder, pipe, splits, names, slugs(names, notes), words, records, state)
    pairs = confusable_pairs(records)
    site.write_all(source / CROPS, made.vocabulary, pairs, progress)
    return GuideResult(len(names), len(pairs), site.num_written, notes + site.notes)


def _prepare(folder: Path) -> None:
    """Make the folder a guide's."""
    with writing_to(folder):
        for place in (folder, *(folder / name for name in ("images", "species", "pairs"))):
            place.mkdir(parents=True, exist_ok=True)
    if not (folder / RECORD).is_file():
        write_atomically(folder / RECORD, json.dumps({"made_by": "promptcam guide"}))


def slugs(names: Sequence[str], notes: list[str]) -> list[str]:
    """
    File names for the pages of species: their ASCII letters and digits, short, and different where case does not
    matter.

    Args:
        names: The names of the species.
        notes: Gets a line for each name that would have had the file of another one.
    """
    taken: dict[str, str] = {}
    found = []
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:LONGEST_SLUG] or "species"
        slug, number = plain, 2
        while slug.casefold() in taken:
            slug, number = f"{plain}-{number}", number + 1
        if slug != plain and plain != "species":
            notes.append(f"{name!r} would have the same page as {taken[plain.casefold()]!r}; its page is {slug}.html.")
        taken[slug.casefold()] = name
        found.append(slug)
    return found


@dataclass(eq=False)
class _Site:
    """The pages. Whatever is written is remembered, so that what an earlier guide left can be removed."""

    folder: Path
    pipe: PromptCamPipeline
    splits: dict[str, Photographs]
    names: list[str]
    slugs: list[str]
    words: list[str]
    records: list[Record]
    state: str  # of the vocabulary; pictures of another one are drawn anew
    notes: list[str] = field(default_factory=list)
    num_written: int = 0
    kept: set[Path] = field(default_factory=set)
    having: list[list[int]] = field(init=False)  # the species that have each trait

    def __post_init__(self) -> None:
        traits = [set(record.traits()) for record in self.records]
        self.having = [
            [label for label, found in enumerate(traits) if trait in found] for trait in range(len(self.words))
        ]

    def write_all(self, crops: Path, vocabulary: Vocabulary, pairs: list[tuple[int, int]], progress: bool) -> None:
        bar = tqdm(total=len(self.names) + len(pairs), desc="writing", unit="page", disable=not progress)
        paired: dict[int, dict[int, str]] = {label: {} for label in range(len(self.names))}
        for a, b in pairs:
            paired[a][b] = paired[b][a] = self._pair_file(a, b)
        self._write_static()
        cards = []
        for label in range(len(self.names)):
            cards.append(self._write_species(label, paired[label]))
            bar.update()
        with self.pipe.model.cached_prompts():
            for a, b in pairs:
                self._write_pair(a, b)
                bar.update()
        self._write_traits(crops, vocabulary)
        shown = [(self.names[a], self.names[b], paired[a][b]) for a, b in pairs]
        self._page(INDEX, "index.html", root="", cards=cards, pairs=shown)
        bar.close()
        self._remove_stale()

    def _write_static(self) -> None:
        for name in (STYLE, SEARCH):
            self._write(self.folder / name, (TEMPLATES / name).read_bytes())

    # --- Pages --------------------------------------------------------------------------------------------------------

    def _write_species(self, label: int, paired: dict[int, str]) -> dict[str, Any]:
        """Write a page; returns what the index shows of it."""
        record, file = self.records[label], f"species/{self.slugs[label]}.html"
        photographs = [shown for example in record.examples if (shown := self._shown(example))]
        rows = [
            {
                "trait": trait,
                "share": float(record.shares[trait]),
                "others": [(self.names[other], self.slugs[other]) for other in self.having[trait] if other != label],
            }
            for trait in record.traits()
        ]
        right = record.taken_for[label] / record.num_tested if record.num_tested else None
        mistaken = [
            (self.names[other], self.slugs[other], count, paired.get(other))
            for other, count in record.taken_for.most_common()
            if other != label
        ]
        facts = {"record": record, "right": right, "mistaken": mistaken, "rows": rows, "photographs": photographs}
        self._page(file, "species.html", root="../", name=self.names[label], **facts)
        thumbnail = photographs[0]["thumbnail"] if photographs else None
        return {
            "name": self.names[label],
            "file": file,
            "thumbnail": thumbnail,
            "right": record.taken_for[label],
            "tested": record.num_tested,
        }

    def _write_pair(self, a: int, b: int) -> None:
        sides = []
        for label, other in ((a, b), (b, a)):
            record = self.records[label]
            chosen = (record.examples[:PAIR_EXAMPLES], record.mistakes.get(other, []))
            photographs, mistakes = (
                [shown for example in examples if (shown := self._shown(example, (a, b)))] for examples in chosen
            )
            side: dict[str, Any] = {"name": self.names[label], "slug": self.slugs[label], "other": self.names[other]}
            side |= {"tested": record.num_tested, "count": record.taken_for[other]}
            sides.append(side | {"photographs": photographs, "mistakes": mistakes})
        shares = [self.records[label].shares for label in (a, b)]
        order = sorted(range(len(self.words)), key=lambda trait: -abs(shares[0][trait] - shares[1][trait]))
        rows = [
            (trait, float(shares[0][trait]), float(shares[1][trait]))
            for trait in order
            if abs(shares[0][trait] - shares[1][trait]) >= DIFFERS
        ]
        self._page(self._pair_file(a, b), "pair.html", root="../", sides=sides, rows=rows)

    def _write_traits(self, crops: Path, vocabulary: Vocabulary) -> None:
        rows = []
        for trait in range(len(vocabulary)):
            having = [(self.names[label], self.slugs[label]) for label in self.having[trait]]
            row = {"trait": trait, "part": int(vocabulary.part[trait]) + 1, "of": having, "picture": None}
            file = crops / f"trait_{trait + 1}.jpg"
            if file.is_file():
                row["picture"] = f"images/{file.name}"
                self._write(self.folder / "images" / file.name, file.read_bytes())
                with Image.open(file) as picture:
                    row["size"] = picture.size
            rows.append(row)
        self._page(TRAITS, "traits.html", root="", rows=rows)

    def _pair_file(self, a: int, b: int) -> str:
        return f"pairs/{self.slugs[a]}--{self.slugs[b]}.html"

    def _page(self, file: str, template: str, **content: Any) -> None:
        text = environment().get_template(template).render(words_of=self.words, **content)
        self._write(self.folder / file, text)

    # --- Pictures -----------------------------------------------------------------------------------------------------

    def _shown(self, example: Example, pair: tuple[int, int] | None = None) -> dict[str, Any] | None:
        """Thumbnail and crops of a photograph and, for a pair of classes, their comparison: drawn unless they are
        there; None if the photograph cannot be read any more."""
        photographs = self.splits[example.split]
        state = f"{self.state} {photograph_state(photographs, example.row)} {example.peaks}"
        stem = self.folder / "images" / hashlib.sha256(state.encode()).hexdigest()[:16]
        thumbnail = stem.with_name(f"{stem.name}.webp")
        crops = [stem.with_name(f"{stem.name}_{number}.webp") for number in range(len(example.peaks))]
        comparison = None if pair is None else stem.with_name(f"{stem.name}_{pair[0]}_against_{pair[1]}.webp")
        files = [thumbnail, *crops, *([comparison] if comparison else [])]
        if missing := [file for file in files if not file.is_file()]:
            try:
                photograph = photographs.photograph(example.row, size=READ_AT)
            except ValueError as error:
                self.notes.append(f"left out: {error}")
                return None
            small = reduced(photograph, THUMBNAIL)
            for (x, y, _), file in zip(example.peaks, crops, strict=True):
                save_picture(crop(photograph, (x, y)), file)
            if pair and comparison:
                save_picture(self._compared(photograph, small, *pair), comparison)
            save_picture(small, thumbnail)
            self.num_written += len(missing)
        self.kept.update(files)
        with Image.open(thumbnail) as picture:
            size = {"width": picture.width, "height": picture.height}
        return {
            "thumbnail": size | {"file": f"images/{thumbnail.name}"},
            "comparison": size | {"file": f"images/{comparison.name}"} if comparison else None,
            "crops": [(f"images/{file.name}", trait) for file, (*_, trait) in zip(crops, example.peaks, strict=True)],
        }

    def _compared(self, photograph: Image.Image, small: Image.Image, a: int, b: int) -> Image.Image:
        """What speaks for a against b, over the small photograph: yellow for a, blue for b."""
        (explanation,) = self.pipe(photograph, classes=[a], compare_with=b)
        return draw_comparison(small, explanation["comparison"]["map"])

    # --- Files --------------------------------------------------------------------------------------------------------

    def _write(self, file: Path, content: str | bytes) -> None:
        """Write a file unless it is the same already."""
        self.kept.add(file)
        data = content.encode() if isinstance(content, str) else content
        if not file.is_file() or file.read_bytes() != data:
            write_atomically(file, data)
            self.num_written += 1

    def _remove_stale(self) -> None:
        """Remove what an earlier guide left."""
        for pattern in ("images/*.webp", "images/trait_*.jpg", "species/*.html", "pairs/*.html"):
            for file in self.folder.glob(pattern):
                if file not in self.kept:
                    file.unlink()
