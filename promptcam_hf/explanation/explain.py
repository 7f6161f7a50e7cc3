"""Explain photographs with a checkpoint: `promptcam explain`, as a Python function.

Each line of `explanations.jsonl` is an object with `photograph` (its path) and either `sheet` (the file name of its
contact sheet, if it has one), `files` (of its saved maps, if any) and what `Explanations.to_json` returns, with maps;
or `error`. The lines are in the order of the photographs. The file appears when all of them are done.
"""

import csv
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from tqdm.auto import tqdm

from ..files import LOCK, check_is_path, only_run_in, write_atomically, write_files_atomically, writing_to
from ..messages import check_counts
from ..modeling.images_promptcam import load_photograph
from .drawing import contact_sheet, is_sheet, shrunk, titled, write_sheet
from .inputs import check_any_exists, find_photographs, identities, sheet_names
from .page import AddToPage, page_of
from .predictor import NamesTraits, PromptCamPredictor, Source, explanations_of
from .saving import Format, Size, check_saved, safe_labels, trait_files

RECORD, REGIONS, MAPS = "explanations.jsonl", "regions.csv", "maps"
REGION_COLUMNS = (
    *("photograph", "label", "score", "rank", "head"),
    *("peak_x", "peak_y", "left", "top", "right", "bottom", "trait"),
)


@dataclass(frozen=True)
class ExplainResult:
    """
    What `explain` has written.

    Args:
        record: The path of `explanations.jsonl`; None if no folder was asked for.
        num_written: Number of photographs that were explained.
        errors: Photograph -> why it could not be read.
        num_by_default: Number of photographs with a `num_sufficient` of 0 for the first explained class. If that is the
            most probable one, it wins even with all heads blurred, so that its maps do not say why.
        compared_with: Of `compare`: class b -> number of photographs that were compared with it.
    """

    record: Path | None
    num_written: int
    errors: dict[str, str]
    num_by_default: int
    compared_with: Counter[str]


def explain(
    photographs: str | os.PathLike | Sequence[str | os.PathLike],
    model: str | os.PathLike,
    output_dir: str | os.PathLike | None = None,
    *,
    html: str | os.PathLike | None = None,
    top_k: int | None = None,
    classes: Sequence[str | int] | None = None,
    top_traits: int = 4,
    traits: NamesTraits | None = None,
    save: Sequence[str] = (),
    format: Format | Literal["jsonl"] = "png",
    size: Size | None = None,
    batch_size: int = 32,
    overwrite: bool = False,
    progress: bool = True,
    **predictor_options: Any,
) -> ExplainResult:
    """
    Show which traits speak for a class on photographs: a contact sheet per photograph, and `explanations.jsonl`; or one
    page about all of them. A photograph that cannot be read does not stop the others.

    Args:
        photographs: Files, URLs, patterns, folders or lists, as for `find_photographs`.
        model: Checkpoint folder or Hub id.
        output_dir: The folder to write to. It is created if needed. None, with `html`, writes the page alone.
        html: File of a page that shows all photographs with their traits, pictures included.
        top_k: How many classes to explain per photograph, the most probable first. Default: 1.
        classes: Names or labels of the classes to explain instead, whatever their scores.
        top_traits: How many traits to show per class, the most important first.
        traits: What names them, such as `TraitNames`: `trait` in `explanations.jsonl`, unless there is no name.
        save: What else to write: "maps", a file for each trait (see `saving.py`); "heads", the same for all heads;
            "overlay", the maps over the photograph; "regions", a table of where they lie, `regions.csv`.
        format, size: Of these files; the size is that of the "photograph" (the default) or the "grid" (for npy). The
            format "jsonl" writes `explanations.jsonl` alone.
        batch_size: Photographs per forward pass.
        overwrite: Whether to replace files that are already there. What an earlier run wrote is then removed first.
        progress: Whether to show a progress bar.
        predictor_options: `device`, `dtype`, `backbone` and `num_workers`, as for `PromptCamPredictor`.

    Returns:
        What was written, and which photographs could not be read.

    Raises:
        ValueError: If there are no photographs, an argument is out of range or does not fit the checkpoint or another
            one, a file is there already (a photograph even with `overwrite`), or another run is writing to the folder.
        FloatingPointError: If the model's scores are not finite.
        OSError: If a file cannot be written.
    """
    check_options(top_k, classes, top_traits, batch_size)
    page = None if html is None else Path(html)
    _check_outputs(output_dir, page, format, bool(save or size))
    draw = None if format == "jsonl" else contact_sheet
    files: Format = "png" if format == "jsonl" else format
    check_saved(save, files, size)
    explained = (top_k or 1) if classes is None else classes
    maps = sys.maxsize if "heads" in save else top_traits
    predictor_options |= {"explained": explained, "maps": maps, "traits": traits}
    output = Output(draw, top_traits, save, files, size, page)
    return write_sheets(photographs, model, output_dir, output, predictor_options, batch_size, overwrite, progress)


@dataclass(frozen=True)
class Output:
    """
    What to write for each photograph.

    Args:
        draw: Draws its sheet, of the photograph, its explanations and a title; None for no sheets.
        top_traits: How many traits a sheet shows.
        save, format, size, html: As for `explain`.
        work: What the progress bar says.
    """

    draw: Callable[..., Image.Image] | None
    top_traits: int
    save: Sequence[str] = ()
    format: Format = "png"
    size: Size | None = None
    html: Path | None = None
    work: str = "explaining"


def write_sheets(
    photographs: str | os.PathLike | Sequence[str | os.PathLike],
    model: str | os.PathLike,
    output_dir: str | os.PathLike | None,
    output: Output,
    predictor_options: dict[str, Any],
    batch_size: int,
    overwrite: bool,
    progress: bool,
) -> ExplainResult:
    """Write a sheet per photograph and the record: what `explain` and `compare` share. See there for the arguments."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("Several processes share the work only with --format parquet (explain_shards).")
    sources = find_photographs(photographs)
    check_any_exists(sources)
    folder = None if output_dir is None else Path(output_dir)
    sheets: list[Path | None] = [None] * len(sources)
    files = [] if output.html is None else [output.html]
    if folder is not None:
        if output.draw is not None:
            sheets = [folder / f"{name}.png" for name in sheet_names(sources)]
        files += [folder / RECORD, *_extras(folder, output.save), *(sheet for sheet in sheets if sheet is not None)]
    _check_output(files, sources, overwrite)
    predictor = PromptCamPredictor(model, **predictor_options)
    writer = _Writer(folder, output, safe_labels(predictor.names), identities(sources))
    with _only_run(folder, output.html):
        _check_output(files, sources, overwrite)  # another run may have written since
        if overwrite and folder is not None:
            _remove_earlier(folder, sources)
        named = (Source(str(path), path, os.path.basename(os.path.dirname(path))) for path in sources)
        return writer.write_all(predictor.stream(named, batch_size, shrunk), sources, sheets, progress)


def check_options(top_k: int | None, classes: Sequence[str | int] | None, top_traits: int, batch_size: int) -> None:
    """Refuse options that are out of range or contradict each other."""
    check_counts(top_k=top_k, top_traits=top_traits, batch_size=batch_size)
    if top_k is not None and classes is not None:
        raise ValueError(f"top_k={top_k} and classes={classes!r} both choose the classes to explain: pass one.")


def _check_outputs(output_dir: str | os.PathLike | None, page: Path | None, format: str, with_files: bool) -> None:
    """Refuse outputs that contradict each other."""
    if output_dir is None and page is None:
        raise ValueError("Nowhere to write to: expected a folder (--output-dir), a page (--html), or both.")
    if page is not None and (page.suffix.lower() not in (".html", ".htm") or page.is_dir()):
        raise ValueError(f"html={page}: expected a file that ends in .html.")
    if output_dir is None and (with_files or format == "jsonl"):
        raise ValueError("save, size and the format jsonl need a folder (--output-dir).")
    if format == "jsonl" and with_files:
        raise ValueError("The format jsonl writes explanations.jsonl alone; leave out save and size.")


@contextmanager
def _only_run(folder: Path | None, page: Path | None) -> Iterator[None]:
    """Hold the folder and the page, as far as they are wanted, so that no other run writes to them at the same time."""
    with ExitStack() as held:
        if folder is not None:
            held.enter_context(only_run_in(folder))
        if page is not None:
            held.enter_context(only_run_in(page.parent, f".{page.name}{LOCK}"))
        yield


# --- The output folder ------------------------------------------------------------------------------------------------


def _extras(folder: Path, save: Sequence[str]) -> list[Path]:
    """What is written besides the contact sheets and the record."""
    return [folder / (REGIONS if name == "regions" else MAPS) for name in save]


def _check_output(files: Sequence[Path], sources: Sequence[str | Path], overwrite: bool) -> None:
    """Refuse to replace a photograph or, without `overwrite`, any file; and URIs."""
    inputs = identities(sources)
    for file in files:
        check_is_path(file)
        _check_no_photograph(file, inputs)
        if os.path.lexists(file) and not overwrite:
            raise ValueError(f"{file} exists; choose another folder, or overwrite it (--overwrite).")


def _check_no_photograph(file: Path, inputs: set[tuple[int, int]]) -> None:
    if identities([file]) & inputs:
        raise ValueError(f"{file} is one of the photographs; choose another folder for the contact sheets.")


def _remove_earlier(output_dir: Path, sources: Sequence[str | Path]) -> None:
    """Remove what an earlier run wrote, which would otherwise stay beside what is new: its contact sheets, the table of
    regions, the maps that its record lists, and the record. A photograph is never removed."""
    inputs, record, regions = identities(sources), output_dir / RECORD, output_dir / REGIONS
    files = [output_dir / name for name in _recorded_files(record)]
    folders = {file.parent for file in files}
    with writing_to(output_dir):
        files += [file for file in output_dir.iterdir() if is_sheet(file) or (file == regions and _is_table(file))]
        for file in [*files, record]:
            if os.path.lexists(file) and not identities([file]) & inputs:
                file.unlink()
        for folder in [*folders, output_dir / MAPS] if folders else ():
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _is_table(file: Path) -> bool:
    """Whether a file is a table of regions, and not one of the same name that somebody else made."""
    with open(file, encoding="utf-8", errors="replace") as content:
        return content.readline().strip() == ",".join(REGION_COLUMNS)


def _recorded_files(record: Path) -> list[str]:
    """The files with maps that a record lists, as far as it can be read."""
    found = []
    for line in record.read_text(encoding="utf-8", errors="replace").splitlines() if record.is_file() else ():
        try:
            files = json.loads(line).get("files", [])
        except (ValueError, AttributeError):
            continue
        found += [name for name in files if isinstance(name, str) and _is_ours(Path(name))]
    return found


def _is_ours(name: Path) -> bool:
    """Whether a file may be one with a map: `maps/<photograph>/<file>`, and nothing above or elsewhere."""
    return len(name.parts) == 3 and name.parts[0] == MAPS and ".." not in name.parts


# --- Explanations -----------------------------------------------------------------------------------------------------


@contextmanager
def _record(folder: Path, with_regions: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that adds the line of a photograph to the record and, if wanted, to the table of regions. The files
    appear when the block ends."""
    with ExitStack() as files:
        draft = files.enter_context(write_files_atomically(folder))
        record = files.enter_context(open(draft / RECORD, "w", encoding="utf-8"))
        regions: Any = None
        if with_regions:
            file = files.enter_context(
                open(draft / REGIONS, "w", encoding="utf-8", errors="surrogateescape", newline="")
            )
            regions = csv.writer(file, lineterminator="\n")
            regions.writerow(REGION_COLUMNS)

        def add(line: dict[str, Any]) -> None:
            record.write(json.dumps(line, allow_nan=False) + "\n")
            for item in line.get("explanations", ()) if regions else ():
                about = (line["photograph"], item["label"], f"{item['score']:.6g}")
                regions.writerows(
                    (*about, trait["rank"], trait["head"], *trait["peak"], *trait["box"], trait.get("trait"))
                    for trait in item["traits"]
                )

        yield add


@dataclass(frozen=True)
class _Writer:
    """Writes the files of photographs."""

    folder: Path | None
    output: Output
    labels: dict[str, str]
    inputs: set[tuple[int, int]]

    def write_all(
        self,
        batches: Iterable[dict[str, Any]],
        sources: Sequence[str | Path],
        sheets: Sequence[Path | None],
        progress: bool,
    ) -> ExplainResult:
        """Write the files of all photographs, and the record and the page when they are there."""
        errors: dict[str, str] = {}
        num_by_default, compared_with = 0, Counter[str]()
        remaining = iter(zip(sources, sheets, strict=True))
        with (
            ExitStack() as outputs,
            tqdm(total=len(sources), desc=self.output.work, unit="photo", disable=not progress) as bar,
        ):
            html, folder, with_regions = self.output.html, self.folder, "regions" in self.output.save
            page = None if html is None else outputs.enter_context(page_of(html))
            record = None if folder is None else outputs.enter_context(_record(folder, with_regions))
            for columns in batches:
                for row in range(len(columns["photograph"])):
                    line = self.write(columns, row, *next(remaining), page)
                    if record is not None:
                        record(line)
                    if "error" in line:
                        errors[line["photograph"]] = line["error"]
                    found = line.get("explanations", [])
                    num_by_default += sum(item["num_sufficient"] == 0 for item in found[:1])
                    compared_with.update(item["comparison"]["label"] for item in found if "comparison" in item)
                    bar.update()
        record_file = None if folder is None else folder / RECORD
        return ExplainResult(record_file, len(sources) - len(errors), errors, num_by_default, compared_with)

    def write(
        self, columns: dict[str, Any], row: int, source: str | Path, sheet: Path | None, page: AddToPage | None
    ) -> dict[str, Any]:
        """Write a photograph's contact sheet, its part of the page and its maps, as far as they are wanted. Returns its
        line of the record."""
        line: dict[str, Any] = {"photograph": str(source)}
        error, photograph = columns["error"][row], None
        if error is None and "overlay" in self.output.save:
            try:  # again, since a batch of photographs at full size may not fit into memory
                photograph = load_photograph(source)
            except ValueError as gone:
                error = str(gone)
        if error is not None:
            if page is not None:
                page(str(source), error, None)
            return line | {"error": error}
        explanations = explanations_of(columns, row)
        title = titled(str(source), columns["truth"][row], columns["label"][row])
        shown = [item | {"traits": item["traits"][: self.output.top_traits]} for item in explanations]
        if page is not None:
            page(title, shown, columns["kept"][row])
        if sheet is not None and self.output.draw is not None:
            picture = self.output.draw(columns["kept"][row], shown, title=title)
            write_atomically(sheet, write_sheet(picture))
            line["sheet"] = sheet.name
            if {"maps", "heads", "overlay"} & set(self.output.save):
                line["files"] = self._write_maps(sheet, photograph, columns, row, explanations)
        return line | explanations.to_json(maps=True)

    def _write_maps(
        self,
        sheet: Path,
        photograph: Image.Image | None,
        columns: dict[str, Any],
        row: int,
        explanations: list[dict[str, Any]],
    ) -> list[str]:
        """Write the maps of a photograph to files in a folder named like its sheet, and return their names."""
        size = (int(columns["width"][row]), int(columns["height"][row]))
        is_grid = self.output.size == "grid" or (self.output.size is None and self.output.format == "npy")
        files = []
        for file, content in trait_files(
            photograph, explanations, self.labels, self.output.save, self.output.format, None if is_grid else size
        ):
            path = sheet.parent / MAPS / sheet.stem / file
            _check_no_photograph(path, self.inputs)
            with writing_to(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
            files.append(path.relative_to(sheet.parent).as_posix())
        return files
