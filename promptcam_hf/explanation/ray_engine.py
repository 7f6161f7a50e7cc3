"""Explain photographs on a Ray cluster, into the same shards as `explain_shards` writes.

A task is a shard. Ray Data hands the tasks to a pool of actors, each with a predictor of its own, and repeats those of
an actor that is lost. An actor writes its shard under another name, and renames it. So a shard is there once or not at
all, and only the names of photographs travel through Ray's object store.
"""

import logging
import os
import pickle
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple
from uuid import uuid4

from tqdm.auto import tqdm

from ..messages import check_counts, check_installed, first_line
from .predictor import PromptCamPredictor
from .shards import (
    ShardOptions,
    ShardRun,
    ShardsResult,
    model_state,
    open_run,
    open_shards,
    shard_content,
)
from .sources import Collection, DataSet, FileList, Several, TarFile
from .storage import Storage, open_storage

logger = logging.getLogger(__name__)

ERRORS, DRAFT = "_errors.parquet", "ray-"  # readers of folders of parquet files leave out names that begin with _
MOST_CPUS = 8  # for a process, by default
FAILURES: dict[str, type[Exception]] = {kind.__name__: kind for kind in (ValueError, OSError, FloatingPointError)}


def explain_on_ray(
    photographs: Any,
    model: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    num_actors: int | None = None,
    num_gpus: float | None = None,
    num_workers: int | None = None,
    top_k: int | None = None,
    classes: Sequence[str | int] | None = None,
    top_traits: int = 4,
    shard_size: int = 10_000,
    batch_size: int = 32,
    progress: bool = True,
    **predictor_options: Any,
) -> ShardsResult:
    """
    Explain photographs into parquet files on a Ray cluster: the one that the program is connected to, that the variable
    `RAY_ADDRESS` names, or that this machine is part of; or else a new one on this machine. The files are those of
    `explain_shards`, and each of the two functions completes what the other has begun. `_errors.parquet` lists the
    photographs that could not be read.

    All machines need the same files under the same names: photographs, the model unless it is on the Hub, and
    `output_dir` unless it is a URI.

    Args:
        photographs: As for `explain_shards`, except datasets of the Hub or of the library `datasets`.
        num_actors: Processes that explain, each with a model of its own. Default: as many as there are GPUs for, or
            without GPUs, CPUs.
        num_gpus: GPUs for each, which may be a fraction. Default: 1 if the cluster has a GPU, or else 0.
        num_workers: Threads that read photographs for each, and CPUs that it occupies. Default: 1; with GPUs, as many
            CPUs as there are for each, at most 8.
        shard_size: Rows of a shard, which is the most work that is repeated when an actor is lost.
        model, output_dir, top_k, classes, top_traits, batch_size, progress, predictor_options: As for `explain_shards`.

    Returns:
        What was done.

    Raises:
        ValueError: As `explain_shards`; or if Ray cannot be reached, or a machine has no such files or another model.
        ModuleNotFoundError: If Ray is not installed (extra `ray`).
        FloatingPointError: If the model's scores are not finite.
        OSError: If a shard cannot be written, or Ray gave up. Those that are there stay.
    """
    check_installed("ray", "ray")
    pool = Pool(num_actors, num_gpus, num_workers)
    pool.check()
    options = ShardOptions(top_k, classes, top_traits, shard_size, batch_size)
    run = open_run(photographs, model, output_dir, options, device="cpu", **predictor_options)
    writer = {"model": os.fspath(model), "output_dir": os.fspath(output_dir), "folder": os.getcwd()}
    with _connected(), run.begin(rank=0):
        return _work(run, {**writer, "options": options, "predictor_options": predictor_options}, pool, progress)


# --- The pool ---------------------------------------------------------------------------------------------------------


class Pool(NamedTuple):
    """How many actors there are, and what each occupies."""

    num_actors: int | None
    num_gpus: float | None
    num_cpus: int | None

    def check(self) -> None:
        """Refuse numbers that are out of range."""
        check_counts(num_actors=self.num_actors, num_workers=self.num_cpus)
        if self.num_gpus is not None and self.num_gpus < 0:
            raise ValueError(f"num_gpus={self.num_gpus}: expected 0 or more.")

    def resolved(self) -> "Pool":
        """With the defaults for the cluster."""
        import ray

        found = ray.cluster_resources()
        all_gpus, all_cpus = found.get("GPU", 0.0), int(found.get("CPU", 1))
        num_gpus = min(all_gpus, 1.0) if self.num_gpus is None else self.num_gpus
        most = max(int(all_gpus / num_gpus), 1) if num_gpus else all_cpus
        num_cpus = self.num_cpus or max(min(all_cpus // most, MOST_CPUS), 1)
        num_actors = self.num_actors or max(min(most, all_cpus // num_cpus), 1)
        if num_gpus > all_gpus or num_cpus > all_cpus:
            message = "The cluster has %d CPUs and %g GPUs now; a process needs %d and %g. Waiting for more."
            logger.warning(message, all_cpus, all_gpus, num_cpus, num_gpus)
        return Pool(num_actors, num_gpus, num_cpus)


@contextmanager
def _connected() -> Iterator[None]:
    """Connect to Ray, unless the program is connected already."""
    # Ray reads these when it is imported
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing about this run is sent to anybody
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # or each actor that may be replaced causes a warning
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(f"Ray cannot be started or reached ({first_line(error)}).") from None
    try:
        yield
    finally:
        ray.shutdown()


# --- Tasks ------------------------------------------------------------------------------------------------------------


class Stretch(NamedTuple):
    """Photographs `start` to `stop` - 1 of a collection."""

    collection: Collection
    start: int
    stop: int


def stretches(collection: Collection, start: int, stop: int) -> list[Stretch]:
    """
    A few photographs of a collection, without the others: small enough to be sent to another machine.

    Raises:
        ValueError: If they are in a dataset that is streamed or in memory.
    """
    if isinstance(collection, Several):
        return [stretch for part in collection.overlaps(start, stop) for stretch in stretches(*part)]
    if isinstance(collection, DataSet):
        raise ValueError(
            f"{collection.name}: the engine ray reads no datasets; download its parquet files, and name those."
        )
    if isinstance(collection, FileList):
        return [Stretch(FileList(collection.paths[start:stop]), 0, stop - start)]
    if isinstance(collection, TarFile):
        return [Stretch(collection.only(start, stop), 0, stop - start)]
    return [Stretch(collection, start, stop)]


class ShardWriter:
    """What an actor does: explain the photographs of a shard, and write it."""

    def __init__(
        self,
        folder: str,
        model: str,
        output_dir: str,
        options: ShardOptions,
        predictor_options: dict[str, Any],
        manifest: dict[str, Any],
    ):
        self.folder, self.model, self.output_dir = folder, model, output_dir
        self.options, self.predictor_options, self.manifest = options, predictor_options, manifest
        self.predictor: PromptCamPredictor | None = None

    def __call__(self, task: Any) -> dict[str, list[Any]]:
        """Takes a shard's name and pickled stretches, as a table of one row. Returns how it went, as another."""
        name, photographs = (task.column(column)[0].as_py() for column in ("name", "photographs"))
        done: dict[str, list[Any]] = {"photographs": [0], "errors": [0], "failure": [""], "message": [""]}
        try:
            predictor = self._open()
            parts: list[Stretch] = pickle.loads(photographs)
            sources = chain.from_iterable(part.collection.read(part.start, part.stop) for part in parts)
            content, errors = shard_content(predictor, sources, self.manifest, self.options.batch_size)
            open_storage(self.output_dir).write(name, content, writer=f"{DRAFT}{uuid4().hex}")
        except tuple(FAILURES.values()) as error:
            kind = next(name for name, kind in FAILURES.items() if isinstance(error, kind))
            return done | {"failure": [kind], "message": [f"{socket.gethostname()}: {first_line(error)}"]}
        return done | {"photographs": [sum(part.stop - part.start for part in parts)], "errors": [errors]}

    def _open(self) -> PromptCamPredictor:
        """The predictor, opened at the first task: Ray would wrap an error of `__init__` in pages of others."""
        if self.predictor is None:
            if not os.path.isdir(self.folder):
                raise ValueError(f"no folder {self.folder}; start from a folder that all machines have, such as /tmp.")
            os.chdir(self.folder)  # where names lead from
            predictor = PromptCamPredictor(
                self.model, maps=self.options.top_traits, explained=self.options.explained, **self.predictor_options
            )
            if model_state(predictor, self.model) != self.manifest["model"]:
                raise ValueError(f"{self.model} is another model here than where the command was started.")
            self.predictor = predictor
        return self.predictor


def _work(run: ShardRun, writer: dict[str, Any], pool: Pool, progress: bool) -> ShardsResult:
    """Have the missing shards written, and the table of errors."""
    import ray

    num_shards, num_errors = run.manifest["num_shards"], 0
    missing = run.missing(range(num_shards))
    num_photographs = sum(stop - start for start, stop in missing.values())
    tasks = [
        {"name": name, "photographs": pickle.dumps(stretches(run.collection, *numbers))}
        for name, numbers in missing.items()
    ]
    _remove_drafts(run.storage)
    with tqdm(total=num_photographs, desc="explaining", unit="photo", disable=not progress) as progress_bar:
        try:
            for done in _done(tasks, {**writer, "manifest": run.manifest}, pool.resolved()) if tasks else ():
                if done["failure"]:
                    raise FAILURES[done["failure"]](done["message"])
                num_errors += done["errors"]
                progress_bar.update(done["photographs"])
        except ray.exceptions.RayError as error:
            raise OSError(f"Ray gave up ({first_line(error)}); run the same command again.") from None
    _remove_drafts(run.storage)
    _write_errors(writer["output_dir"])
    return ShardsResult(num_photographs, num_errors, len(missing), num_shards - len(missing))


def _done(tasks: list[dict[str, Any]], writer: dict[str, Any], pool: Pool) -> Iterator[dict[str, Any]]:
    """What the actors say of each task, in any order."""
    import ray.data

    context = ray.data.DataContext.get_current()
    shown, context.enable_progress_bars = context.enable_progress_bars, False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    device = None if pool.num_gpus else "cpu"
    writer = writer | {
        "predictor_options": {**writer["predictor_options"], "device": device, "num_workers": pool.num_cpus}
    }
    try:
        yield from (
            ray.data.from_items(tasks, override_num_blocks=len(tasks))
            .map_batches(
                ShardWriter,
                fn_constructor_kwargs=writer,
                batch_size=1,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=min(pool.num_actors or 1, len(tasks))),
                num_cpus=pool.num_cpus,
                num_gpus=pool.num_gpus,
            )
            .iter_rows()
        )
    finally:
        context.enable_progress_bars = shown


def _remove_drafts(storage: Storage) -> None:
    """Remove what actors that were lost had begun, and nothing else that may be in the folder."""
    for name in storage.names():
        if name.startswith(".") and f".{DRAFT}" in name:
            storage.remove(name)


def _write_errors(output_dir: str | os.PathLike) -> None:
    import pyarrow as pa
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    file = pa.BufferOutputStream()
    columns, is_error = ["photograph", "error"], ds.field("error").is_valid()
    pq.write_table(open_shards(output_dir).to_table(columns=columns, filter=is_error), file)
    open_storage(output_dir).write(ERRORS, file.getvalue().to_pybytes())
