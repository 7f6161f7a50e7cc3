"""The predictor: photographs in, columns out. Everything that runs a model over many photographs uses it.

Shapes: B photographs, C classes, k most probable classes, K explained classes, H heads, T traits.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from itertools import chain, islice
from threading import Lock
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image

from ..checkpoint import open_pipeline
from ..data.photographs import EvaluationTransform, input_size
from ..devices import number_of_workers
from ..messages import check_counts, first_line
from ..modeling import PromptCamForImageClassification
from ..modeling.explanations_promptcam import Explanations
from ..modeling.head_ranking_promptcam import LastLayer
from ..modeling.images_promptcam import load_photograph, photograph_shares
from ..modeling.pipeline_promptcam import (
    check_finite,
    class_labels,
    comparison_of,
    rank_and_compare,
    rival_label,
)
from ..modeling.probabilities_promptcam import keep_only, probabilities
from .answers import AnswerRule, read_class_list

DTYPES = ("float32", "bfloat16", "float16")


class Source(NamedTuple):
    """
    A photograph and its name.

    Args:
        name: What the column `photograph` says.
        image: A path, URL, bytes, `PIL.Image.Image` or array; or a function that returns one of these, and raises a
            `ValueError` if it cannot.
        truth: Name of the true class, if it is known.
    """

    name: str
    image: Any
    truth: str | None = None


NamesAt = Callable[[np.ndarray], Any]


class NamesTraits(Protocol):
    """Says what the peaks of trait maps show. `TraitNames` does so in the words of a vocabulary."""

    fingerprint: str  # the same for two that give the same names

    def check(self, model: PromptCamForImageClassification) -> None:
        """Raise a `ValueError` if the names are not for this model."""

    def watch(self, model: PromptCamForImageClassification, shares: torch.Tensor) -> AbstractContextManager[NamesAt]:
        """Watch the model look at a batch, of which photographs take these shares (see `photograph_shares`).
        Afterwards, the function says what is at the peak of each trait map."""


@dataclass
class _Read:
    """A photograph as the model gets it, or why there is none."""

    view: torch.Tensor | None = None  # not normalised yet
    size: tuple[int, int] = (0, 0)
    kept: Any = None
    error: str | None = None


class PromptCamPredictor:
    """
    Classifies photographs and, if asked to, explains the classes. A photograph that cannot be read never stops the
    others.

    ```python
    >>> predictor = PromptCamPredictor("path/or/hub-id", top_k=3, maps=4)
    >>> columns = predictor(["oriole.jpg", "wren.jpg"])
    >>> columns["label"], columns["maps"].shape
    (['Scott_Oriole', 'House_Wren'], (2, 1, 4, 16, 16))
    ```

    Args:
        model: Checkpoint folder or Hub id, or a pipeline that is open already. The weights must not change as long as
            the predictor is used.
        device: Such as `"cuda"` or `"cpu"`, or the number of a GPU. Default: a GPU if there is one.
        dtype: Data type of the backbone's arithmetic: `"float32"`, `"bfloat16"` or `"float16"`. Default: that of the
            checkpoint.
        backbone: Where the backbone is now (Hub id or folder), for a checkpoint that holds only prompts.
        top_k: How many classes to name for each photograph, at most.
        maps: How many traits to show for each explained class, at most. Default: 0, nothing is explained, which is
            faster.
        explained: How many classes to explain, the most probable first; or names or labels of classes.
        compare_with: Name or label of a class to compare the explained classes with; "auto" for the runner-up of
            each.
        traits: What gives the explained heads names, such as `TraitNames`.
        only: The classes that can be the answer, such as the species of a region: their names or labels, or a file
            that names them (see `read_class_list`). Their probabilities add up to 1.
        unknown_below, roll_up: When to answer "unknown", or a group of classes; see `AnswerRule`.
        num_workers: Threads that read photographs while the model computes. Default: one per core, at most 8.

    Raises:
        ValueError: If the checkpoint cannot be opened, or an argument is out of range or does not fit it.
    """

    def __init__(
        self,
        model: Any,
        *,
        device: str | int | torch.device | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] | None = None,
        backbone: str | os.PathLike | None = None,
        top_k: int = 5,
        maps: int = 0,
        explained: int | Sequence[str | int] = 1,
        compare_with: str | int | None = None,
        traits: NamesTraits | None = None,
        only: Sequence[str | int] | str | os.PathLike | None = None,
        unknown_below: float | None = None,
        roll_up: Mapping[str, str] | str | os.PathLike | None = None,
        num_workers: int | None = None,
    ):
        check_counts(top_k=top_k, explained=explained if isinstance(explained, int) else None, num_workers=num_workers)
        check_counts(0, maps=maps)
        if dtype not in (None, *DTYPES):
            raise ValueError(f"dtype={dtype}: expected {', '.join(DTYPES)}.")
        is_name = isinstance(model, (str, os.PathLike))
        pipe = open_pipeline(model, device=device, backbone=backbone) if is_name else model
        self.model: PromptCamForImageClassification = pipe.model.eval()
        self.image_processor: Any = pipe.image_processor
        self._preprocess = EvaluationTransform(pipe.image_processor)
        if dtype is not None:
            self.model.backbone.to(getattr(torch, dtype))
        config: Any = self.model.config
        self.names = [config.id2label[label] for label in range(config.num_labels)]
        if isinstance(only, (str, os.PathLike)):
            only = read_class_list(only, self.names)
        self.only = None if only is None else sorted(set(class_labels("only", only, config, at_least=2)))
        self.top_k = min(top_k, len(self.only or self.names))
        self.maps = min(maps, self.model.num_heads)
        self.explained = explained if isinstance(explained, int) else None
        self.classes = None if isinstance(explained, int) else class_labels("classes", explained, config)
        self.compare_with = None if compare_with is None else rival_label(compare_with, config)
        if traits is not None:
            traits.check(self.model)
        self.traits = traits
        self._known = frozenset(self.names)
        self.answer = AnswerRule(self.names, unknown_below, roll_up)
        self.num_workers = number_of_workers(num_workers)
        self._prompts: dict = {}  # projected once
        self._lock = Lock()  # one thread at a time runs the model

    def __call__(self, photographs: Iterable[Any]) -> dict[str, Any]:
        """
        Predict a batch, in one forward pass.

        Args:
            photographs: Paths, URLs, bytes, `PIL.Image.Image`s, arrays (as for `pipeline("prompt-cam")`), or `Source`s.

        Returns:
            Columns of B rows, in the order of the photographs:

            - **photograph** (`list[str]`): path, URL, name of the `Source`, or the number of the row.
            - **error** (`list[str | None]`): why it could not be read. Its other columns then hold None, 0 or NaN.
            - **truth** (`list[str | None]`): its true class, if the `Source` names one of the model's classes.
            - **width**, **height** (`(B,)`, int32): of the upright photograph, in pixels.
            - **label** (`list[str]`), **score** (`(B,)`, float32): the answer, and its probability.
            - **level** (`list[str]`): whether the answer is a "class", a "group" or "unknown".
            - **top_labels** (`list[list[str]]`), **top_scores** (`(B, k)`, float32): the most probable classes.

            If `maps` is not 0, also:

            - **explained** (`list[list[str]]`), **explained_scores** (`(B, K)`, float32): the explained classes.
            - **num_sufficient** (`(B, K)`, int16): how many of the most important heads suffice for the photograph to
              be classified so; 0 if it is not, or if it still is with all heads blurred.
            - **heads** (`(B, K, H)`, int16): heads, counted from 0, most important first.
            - **maps** (`(B, K, T, grid_height, grid_width)`, float32): attention of the first T of them, in [0, 1].
            - **traits** (`list[list[list[str | None]]]`, `(B, K, T)`, with `traits`): names of what the first T show.
            - **comparison** (`list[list[dict]]`, with `compare_with`): as in the explanations of `PromptCamPipeline`;
              with `traits`, each head also has `trait`, the name of what speaks most for the class.

        Raises:
            ValueError: If there are no photographs.
            FloatingPointError: If the model's scores are not finite.
        """
        batch = list(photographs)
        if not batch:
            raise ValueError("No photographs to predict; expected 1 or more.")
        return next(self.stream(batch, batch_size=len(batch)))

    def stream(
        self,
        photographs: Iterable[Any],
        batch_size: int = 32,
        keep: Callable[[Image.Image], Any] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """
        Predict any number of photographs, in batches. While the model computes a batch, the next ones are read; no more
        than two batches wait, and no more than `num_workers` photographs are held at full size.

        Args:
            photographs: As for a call.
            batch_size: Photographs per forward pass.
            keep: What to keep of each photograph (as `load_photograph` returns it) for the column **kept**, such as
                a smaller one.

        Returns:
            An iterator over the columns of each batch.
        """
        sources = (_as_source(photograph, row) for row, photograph in enumerate(photographs))
        waiting: deque[tuple[Source, Future[_Read]]] = deque()
        with ThreadPoolExecutor(self.num_workers) as workers:
            try:
                while True:
                    for source in islice(sources, 2 * batch_size - len(waiting)):
                        waiting.append((source, workers.submit(self._read, source, keep)))
                    if not waiting:
                        return
                    batch = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
                    reads = [read.result() for _, read in batch]
                    yield self._columns([source for source, _ in batch], reads, keep is not None)
            finally:
                workers.shutdown(wait=False, cancel_futures=True)

    @torch.inference_mode()
    def last_layer(self, photograph: Image.Image) -> tuple[LastLayer, NamesAt | None]:
        """
        Walk a photograph to the last layer. What is asked about single heads afterwards starts from there, and takes a
        few milliseconds.

        Args:
            photograph: As `load_photograph` returns it.

        Returns:
            What `PromptCamForImageClassification.last_layer` returns; and, with `traits`, a function that names what is
            at the peaks of maps `(1, ..., h, w)` of this photograph.

        Raises:
            FloatingPointError: If the model's scores are not finite.
        """
        pixel_values = self._preprocess(photograph)[None].to(self.model.device)
        shares = photograph_shares(self.image_processor, [photograph.size])
        with self._lock, self.model.cached_prompts(self._prompts):
            return self._last_layer(pixel_values, shares)

    def _last_layer(self, pixel_values: torch.Tensor, shares: torch.Tensor) -> tuple[LastLayer, NamesAt | None]:
        with nullcontext() if self.traits is None else self.traits.watch(self.model, shares) as names_at:
            layer = self.model.last_layer(pixel_values)
        check_finite(layer.logits, pixel_values)
        return layer, names_at

    def _read(self, source: Source, keep: Callable[[Image.Image], Any] | None) -> _Read:
        try:
            image = source.image() if callable(source.image) else source.image
            photograph = load_photograph(BytesIO(image) if isinstance(image, bytes) else image)
            view = self._preprocess.view(photograph)
        except Exception as error:  # the image processor's may be of any type
            message = first_line(error).removeprefix("This file: ")
            is_named = isinstance(error, ValueError) and message == first_line(error)
            return _Read(error=message if is_named else f"{source.name}: {message}")
        return _Read(view, photograph.size, keep(photograph) if keep else None)

    def _columns(self, sources: list[Source], reads: list[_Read], with_kept: bool) -> dict[str, Any]:
        rows = [row for row, read in enumerate(reads) if read.view is not None]
        columns: dict[str, Any] = {
            "photograph": [source.name for source in sources],
            "error": [read.error for read in reads],
            "truth": [source.truth if source.truth in self._known else None for source in sources],
            "width": np.array([read.size[0] for read in reads], dtype=np.int32),
            "height": np.array([read.size[1] for read in reads], dtype=np.int32),
        }
        views = [read.view for read in reads if read.view is not None]
        if views:
            pixel_values = self._preprocess.normalise(torch.stack(views).to(self.model.device))
            shares = photograph_shares(self.image_processor, [reads[row].size for row in rows])
            with self._lock, self.model.cached_prompts(self._prompts):
                found = self._predict(pixel_values, shares)
        else:
            found = self._predicted_none()
        columns |= {name: _spread(column, rows, len(reads)) for name, column in found.items()}
        return columns | ({"kept": [read.kept for read in reads]} if with_kept else {})

    @torch.inference_mode()
    def _predict(self, pixel_values: torch.Tensor, shares: torch.Tensor) -> dict[str, Any]:
        """The columns of photographs that could be read."""
        outputs: dict[str, Any] = {}
        names_at: NamesAt | None = None
        if self.maps:
            layer, names_at = self._last_layer(pixel_values, shares)
            options = (self.explained or 1, self.classes, self.only, self.compare_with)
            outputs = rank_and_compare(self.model, layer, shares, *options)
            logits = outputs["logits"]
        else:
            logits = self.model(pixel_values).logits
            check_finite(logits, pixel_values)
            logits = keep_only(logits, self.only)
        scores = probabilities(logits, self.model.config)
        top_scores, top_labels = scores.topk(self.top_k, dim=-1)
        answers = self.answer(scores)
        columns: dict[str, Any] = {
            "label": [answer.label for answer in answers],
            "score": np.array([answer.score for answer in answers], dtype=np.float32),
            "level": [answer.level for answer in answers],
            "top_labels": self._names_of(top_labels),
            "top_scores": top_scores.float().cpu().numpy(),
        }
        columns |= self._explained(outputs, scores) if outputs else {}
        if names_at is not None:
            columns["traits"] = names_at(columns["maps"])
            name_traits(columns.get("comparison", ()), names_at)
        return columns

    def _explained(self, outputs: dict[str, Any], scores: torch.Tensor) -> dict[str, Any]:
        """The columns with explanations."""
        classes, heads, trait_maps = outputs["classes"], outputs["order"], outputs["trait_maps"]  # heads: (B, K, H)
        most_important = heads[..., : self.maps, None, None].expand(-1, -1, -1, *trait_maps.shape[-2:])
        columns: dict[str, Any] = {
            "explained": self._names_of(classes),
            "explained_scores": scores.gather(-1, classes).float().cpu().numpy(),
            "num_sufficient": outputs["num_sufficient"].cpu().numpy().astype(np.int16),
            "heads": heads.cpu().numpy().astype(np.int16),
            "maps": trait_maps.gather(2, most_important).float().cpu().numpy(),
        }
        if self.compare_with is not None:
            outputs = {name: value.cpu() for name, value in outputs.items()}
            columns["comparison"] = [
                [comparison_of(outputs, image, row, self.maps, self.model.config) for row in range(classes.shape[1])]
                for image in range(len(classes))
            ]
        return columns

    def _names_of(self, labels: torch.Tensor) -> list[list[str]]:
        return [[self.names[label] for label in row] for row in labels.tolist()]

    def _predicted_none(self) -> dict[str, Any]:
        """The columns of no photographs."""
        columns: dict[str, Any] = {"label": [], "score": np.zeros(0, np.float32), "level": [], "top_labels": []}
        columns["top_scores"] = np.zeros((0, self.top_k), np.float32)
        if self.maps:
            K, H = self.num_explained, self.model.num_heads
            columns |= {"explained": [], "explained_scores": np.zeros((0, K), np.float32)}
            columns |= {"num_sufficient": np.zeros((0, K), np.int16), "heads": np.zeros((0, K, H), np.int16)}
            columns["maps"] = np.zeros((0, K, self.maps, *self.grid), np.float32)
            columns |= {} if self.compare_with is None else {"comparison": []}
            columns |= {} if self.traits is None else {"traits": []}
        return columns

    @property
    def num_explained(self) -> int:
        """K, the number of classes that are explained of each photograph."""
        return min(self.explained or 1, len(self.only or self.names)) if self.classes is None else len(self.classes)

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the backbone's arithmetic."""
        return self.model.backbone.dtype

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the maps, in patches."""
        return self.model.grid(input_size(self.image_processor))


def name_traits(found: Sequence[Sequence[dict[str, Any]]], names_at: NamesAt) -> None:
    """Give the traits of explanations or comparisons, (B, K) of them, the names of what is at their peaks: `trait`."""
    if found:
        names = names_at(np.array([[[trait["map"] for trait in one["traits"]] for one in row] for row in found]))
        for one, its_names in zip(chain(*found), chain(*names), strict=True):
            for trait, name in zip(one["traits"], its_names, strict=True):
                trait["trait"] = name


def explanations_of(columns: dict[str, Any], row: int) -> Explanations:
    """
    The explanations in a row of the columns of a predictor with `maps`, as `pipeline("prompt-cam")` returns them, but
    without heatmaps.

    Args:
        columns: Columns of a batch.
        row: Number of a row, of a photograph that could be read.
    """
    explanations = []
    for k, label in enumerate(columns["explained"][row]):
        maps = np.asarray(columns["maps"][row][k], dtype=np.float32)
        heads = np.asarray(columns["heads"][row][k])[: len(maps)].tolist()
        traits = [
            {"rank": rank, "head": head, "map": trait_map}
            for rank, (head, trait_map) in enumerate(zip(heads, maps, strict=True), start=1)
        ]
        if "traits" in columns:
            traits = [trait | {"trait": name} for trait, name in zip(traits, columns["traits"][row][k], strict=True)]
        score, sufficient = float(columns["explained_scores"][row][k]), int(columns["num_sufficient"][row][k])
        explanation = {"label": label, "score": score, "num_sufficient": sufficient, "traits": traits}
        comparison = {"comparison": columns["comparison"][row][k]} if "comparison" in columns else {}
        explanations.append(explanation | comparison)
    return Explanations(explanations, (int(columns["width"][row]), int(columns["height"][row])))


def _as_source(photograph: Any, row: int) -> Source:
    if isinstance(photograph, Source):
        return photograph
    named = isinstance(photograph, (str, os.PathLike))
    return Source(os.fspath(photograph) if named else str(row), photograph)


def _spread(column: Any, rows: list[int], num_rows: int) -> Any:
    """A column of some rows as one of all rows, with None, 0 or NaN in the others."""
    if isinstance(column, list):
        spread: list[Any] = [None] * num_rows
        for row, value in zip(rows, column, strict=True):
            spread[row] = value
        return spread
    filler = np.nan if column.dtype.kind == "f" else 0
    whole = np.full((num_rows, *column.shape[1:]), filler, dtype=column.dtype)
    whole[rows] = column
    return whole
