"""Explain millions of photographs, into parquet files of a fixed number of rows. They are written whole, so that the
work can be taken up again, and divided among processes.

`_manifest.json` says what the folder holds: the model, the options and a fingerprint of the input. Shard i holds the
photographs i * shard_size and the following, whatever happens. A shard is done if, and only if, its file is there.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from ..checkpoint import weight_files
from ..files import as_text
from ..messages import check_counts
from ..version import __version__
from .explain import check_options
from .predictor import PromptCamPredictor, Source
from .sources import Collection, collect
from .storage import Storage, open_storage

logger = logging.getLogger(__name__)

MANIFEST, METADATA = "_manifest.json", "promptcam"
# What must not change between two runs that share a folder, and how to say so
FIXED = ("model", "options", "input", "num_photographs", "shard_size")


@dataclass(frozen=True)
class ShardsResult:
    """
    What this process has done.

    Args:
        num_photographs: Number of rows that it has written.
        num_errors: How many of them could not be read.
        num_shards: Number of shards that it has written.
        num_earlier: Number of its shards that were there already.
    """

    num_photographs: int
    num_errors: int
    num_shards: int
    num_earlier: int


def explain_shards(
    photographs: Any,
    model: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    top_k: int | None = None,
    classes: Sequence[str | int] | None = None,
    top_traits: int = 4,
    shard_size: int = 10_000,
    batch_size: int = 32,
    device: str | int | None = None,
    progress: bool = True,
    **predictor_options: Any,
) -> ShardsResult:
    """
    Explain photographs into parquet files of `shard_size` rows (see `row_schema`). Runs on one process, or on several
    under `accelerate launch`: each takes shards of its own, and none waits for another. Run again to go on after an
    interruption: what is there is skipped.

    Args:
        photographs: As for `collect`: files, folders, lists, tar and parquet files, datasets.
        model: Checkpoint folder or Hub id.
        output_dir: Folder for the shards: new, or of the same run. A path or a URI; see `open_storage`.
        top_k, classes, top_traits: As for `explain`.
        shard_size: Rows of a shard. A shard is kept in memory until it is written: about 2 kB a row.
        batch_size: Photographs per forward pass.
        device: Such as `"cuda"` or `"cpu"`, or the number of a GPU. Default: a GPU, of its own for each process.
        progress: Whether the first process shows a progress bar.
        predictor_options: `dtype`, `backbone` and `num_workers`, as for `PromptCamPredictor`.

    Returns:
        What this process has done.

    Raises:
        ValueError: If there are no photographs, an input cannot be opened, an argument is out of range, the folder
            holds another run, or another process is doing this one's part.
        FloatingPointError: If the model's scores are not finite.
        OSError: If a shard cannot be written. Those that are there stay.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    options = ShardOptions(top_k, classes, top_traits, shard_size, batch_size)
    device = _own_device(device, world)
    run = open_run(photographs, model, output_dir, options, device=device, **predictor_options)
    with run.begin(rank):
        return _work(run, (rank, world), batch_size, progress and rank == 0)


def _work(run: "ShardRun", part: tuple[int, int], batch_size: int, progress: bool) -> ShardsResult:
    """Write the shards of this process, `part[0]` of `part[1]`, that are not there yet."""
    own = range(part[0], run.manifest["num_shards"], part[1])
    missing = run.missing(own)
    num_photographs, num_errors = sum(stop - start for start, stop in missing.values()), 0
    with tqdm(total=num_photographs, desc="explaining", unit="photo", disable=not progress) as progress_bar:
        for name, (start, stop) in missing.items():
            sources = run.collection.read(start, stop)
            content, errors = shard_content(run.predictor, sources, run.manifest, batch_size, progress_bar.update)
            run.storage.write(name, content)
            num_errors += errors
    return ShardsResult(num_photographs, num_errors, len(missing), len(own) - len(missing))


# --- The run ----------------------------------------------------------------------------------------------------------


class ShardOptions(NamedTuple):
    """The options of `explain_shards` that are not the predictor's."""

    top_k: int | None
    classes: Sequence[str | int] | None
    top_traits: int
    shard_size: int
    batch_size: int

    @property
    def explained(self) -> int | Sequence[str | int]:
        """As for `PromptCamPredictor`."""
        return (self.top_k or 1) if self.classes is None else self.classes


@dataclass(frozen=True)
class ShardRun:
    """What all engines need to explain photographs into a folder."""

    predictor: PromptCamPredictor
    collection: Collection
    storage: Storage
    manifest: dict[str, Any]

    @contextmanager
    def begin(self, rank: int) -> Iterator[None]:
        """Write the manifest, or refuse a folder with that of another run, or whose part is being worked on."""
        names = self.storage.names()  # before another process writes there
        found = _manifest_in(self.storage)
        if found is not None:
            _check_same(self.storage, found, self.manifest)
        elif any(not name.startswith(".") for name in names):
            raise ValueError(
                f"{self.storage} holds something else; expected a new or empty folder, or one of the same run."
            )
        with self.storage.only_run(rank):
            if found is None:  # all processes write the same
                content = json.dumps(self.manifest, indent=1, ensure_ascii=False)
                self.storage.write(MANIFEST, content.encode(), writer=str(rank))
            yield

    def missing(self, shards: Iterable[int]) -> dict[str, tuple[int, int]]:
        """The shards that are not there yet: file name -> numbers of the first photograph, and of the one after the
        last."""
        size, total = self.manifest["shard_size"], self.manifest["num_photographs"]
        names = {shard: shard_name(shard, self.manifest["num_shards"]) for shard in shards}
        there = set(self.storage.names())
        return {
            name: (shard * size, min((shard + 1) * size, total)) for shard, name in names.items() if name not in there
        }


def open_run(
    photographs: Any,
    model: str | os.PathLike,
    output_dir: str | os.PathLike,
    options: ShardOptions,
    **predictor_options: Any,
) -> ShardRun:
    """Find the photographs and open the model. See `explain_shards` for the arguments, and what is raised."""
    check_counts(shard_size=options.shard_size)
    check_options(options.top_k, options.classes, options.top_traits, options.batch_size)
    storage, collection = open_storage(output_dir), collect(photographs)
    predictor = PromptCamPredictor(model, maps=options.top_traits, explained=options.explained, **predictor_options)
    recorded: dict[str, Any] = {
        name: str(value)
        for name, value in predictor_options.items()
        if name not in ("backbone", "device", "num_workers")
    }
    recorded |= {"explained": options.explained, "top_traits": options.top_traits, "dtype": str(predictor.dtype)}
    manifest = _manifest(predictor, model, recorded, collection, options.shard_size)
    return ShardRun(predictor, collection, storage, manifest)


def shard_name(shard: int, num_shards: int) -> str:
    """The file name of a shard, counted from 0."""
    return f"explanations-{shard:05d}-of-{num_shards:05d}.parquet"


def _own_device(device: str | int | None, world: int) -> str | int | None:
    """Of several processes of a machine, each takes a GPU of its own."""
    if device is not None or world == 1 or not torch.accelerator.is_available():
        return device
    return int(os.environ.get("LOCAL_RANK", "0")) % torch.accelerator.device_count()


def _manifest(
    predictor: PromptCamPredictor, model: str | os.PathLike, options: dict[str, Any], collection: Any, shard_size: int
) -> dict[str, Any]:
    return {
        "model": model_state(predictor, model),
        "options": options,
        "input": collection.fingerprint(),
        "num_photographs": len(collection),
        "shard_size": shard_size,
        "num_shards": -(-len(collection) // shard_size),
        "version": __version__,
        "classes": predictor.names,
        "grid": list(predictor.grid),
        "preprocessing": json.loads(predictor.image_processor.to_json_string()),
    }


def model_state(predictor: PromptCamPredictor, model: str | os.PathLike) -> dict[str, Any]:
    """What is the same for two models if, and only if, they have the same name and weights."""
    config: Any = predictor.model.config
    folder = Path(model).expanduser()
    return {
        "name": os.fspath(model),
        "commit": getattr(config, "_commit_hash", None),
        "weights": _weights_digest(folder) if folder.is_dir() else None,
    }


def _weights_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in ("config.json", *weight_files(folder)):
        with open(folder / name, "rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()


def _described(manifest: dict[str, Any]) -> dict[str, Any]:
    """What the metadata of each shard says."""
    return {name: manifest[name] for name in ("model", "options", "version", "classes", "grid", "preprocessing")}


def _manifest_in(storage: Storage) -> dict[str, Any] | None:
    """
    What a folder of shards says of itself: `model`, `options`, `input`, `num_photographs`, `shard_size`, `num_shards`,
    `version`, `classes`, `grid` and `preprocessing`. None if there is no manifest.

    Raises:
        ValueError: If it is damaged.
    """
    content = storage.read(MANIFEST)
    if content is None:
        return None
    try:
        manifest = json.loads(content)
        return {name: manifest[name] for name in (*FIXED, *manifest)}
    except (ValueError, KeyError, TypeError):
        path = storage.location(MANIFEST)
        raise ValueError(f"{path} is damaged; expected what `promptcam explain --format parquet` writes.") from None


def _check_same(folder: Storage, found: dict[str, Any], manifest: dict[str, Any]) -> None:
    for name in FIXED:
        if found[name] != json.loads(json.dumps(manifest[name])):
            what = {"input": "its photographs", "num_photographs": "its number of photographs"}.get(name, f"its {name}")
            values = "" if name == "input" else f" ({_short(found[name], manifest[name])})"
            raise ValueError(
                f"{folder} holds another run: {what} differed{values}; choose another folder, or the same options."
            )


def _short(found: Any, wanted: Any) -> str:
    """The first difference between two values."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        name = next(key for key in wanted if found.get(key) != wanted[key])
        found, wanted = found.get(name), wanted[name]
        return f"{name}: {str(found)[:40]} then, {str(wanted)[:40]} now"
    return f"{found} then, {wanted} now"


# --- Rows -------------------------------------------------------------------------------------------------------------


def row_schema(predictor: PromptCamPredictor) -> Any:
    """
    The `pyarrow.Schema` of the rows of a predictor, one a photograph:

    - **photograph**: its path, URL, or place in a tar or parquet file or dataset; **error**: why it could not be read
      (all other columns but `truth` are then null); **truth**: its true class, if its folder or label names one of the
      model's.
    - **width**, **height**: of the upright photograph, in pixels.
    - **label**, **score**: the most probable class and its probability; **top_labels**, **top_scores**: the five most
      probable.
    - **explained**, **explained_scores**: the K explained classes, and their probabilities.
    - **num_sufficient** (K): how many heads suffice; **heads** (K lists of H): heads, most important first.
    - **maps** (K lists of T grids): attention of the T most important heads, float16; **grid**: height and width of a
      map, in patches.
    """
    import pyarrow as pa

    K, H, T, grid = predictor.num_explained, predictor.model.num_heads, predictor.maps, predictor.grid
    maps: Any = pa.float16()
    for size in (grid[1], grid[0], T, K):
        maps = pa.list_(maps, size)
    types = {
        **dict.fromkeys(("photograph", "error", "truth"), pa.string()),
        **dict.fromkeys(("width", "height"), pa.int32()),
        "label": pa.string(),
        "score": pa.float32(),
        "top_labels": pa.list_(pa.string()),
        "top_scores": pa.list_(pa.float32()),
        "explained": pa.list_(pa.string()),
        "explained_scores": pa.list_(pa.float32()),
        "num_sufficient": pa.list_(pa.int16(), K),
        "heads": pa.list_(pa.list_(pa.int8() if H < 128 else pa.int16(), H), K),
        "maps": maps,
        "grid": pa.list_(pa.int16(), 2),
    }
    return pa.schema(list(types.items()))


def shard_content(
    predictor: PromptCamPredictor,
    sources: Iterable[Source],
    manifest: dict[str, Any],
    batch_size: int,
    on_batch: Callable[[int], Any] | None = None,
) -> tuple[bytes, int]:
    """
    Explain the photographs of a shard.

    Args:
        predictor: The predictor.
        sources: The photographs.
        manifest: What the metadata of the file describes.
        batch_size: Photographs per forward pass.
        on_batch: Called with the number of photographs in each batch that is done.

    Returns:
        The content of its parquet file, and how many photographs could not be read.
    """
    schema = row_schema(predictor).with_metadata({METADATA: json.dumps(_described(manifest))})
    batches, num_errors = [], 0
    for columns in predictor.stream(sources, batch_size):
        batches.append(_as_arrow(columns, schema, predictor.grid))
        num_errors += sum(error is not None for error in columns["error"])
        if on_batch is not None:
            on_batch(len(columns["error"]))
    return _parquet(batches, schema), num_errors


def _as_arrow(columns: dict[str, Any], schema: Any, grid: tuple[int, int]) -> Any:
    """The columns of a predictor as a `pyarrow.RecordBatch`."""
    import pyarrow as pa

    is_bad = np.array([error is not None for error in columns["error"]])
    columns = columns | {"grid": np.tile(np.array(grid, np.int16), (len(is_bad), 1))}
    arrays = []
    for field in schema:
        values = columns[field.name]
        if isinstance(values, list):
            text = [as_text(value) if isinstance(value, str) else value for value in values]
            arrays.append(pa.array(text, field.type))
        elif pa.types.is_fixed_size_list(field.type):
            arrays.append(_fixed_size_lists(values, field.type, is_bad))
        elif values.ndim == 1:
            arrays.append(pa.array(values, field.type, mask=is_bad))
        else:
            rows = [None if bad else row for row, bad in zip(values.tolist(), is_bad, strict=True)]
            arrays.append(pa.array(rows, field.type))
    return pa.record_batch(arrays, schema=schema)


def _fixed_size_lists(values: np.ndarray, kind: Any, is_null: np.ndarray) -> Any:
    import pyarrow as pa

    innermost = kind
    while pa.types.is_fixed_size_list(innermost):
        innermost = innermost.value_type
    array = pa.array(values.ravel().astype(innermost.to_pandas_dtype()))
    for size in reversed(values.shape[2:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return pa.FixedSizeListArray.from_arrays(array, values.shape[1], mask=pa.array(is_null)).cast(kind)


def _parquet(batches: Sequence[Any], schema: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = BytesIO()
    pq.write_table(pa.Table.from_batches(batches, schema=schema), file, compression="zstd")
    return file.getvalue()


def load_explanations(folder: str | os.PathLike) -> Any:
    """
    Read back what `explain_shards` has written.

    Args:
        folder: The folder of the shards.

    Returns:
        A `datasets.Dataset` with the columns of `row_schema`, in the order of the photographs. For more rows than a
        disk should hold twice, `pyarrow.dataset.dataset(folder, format="parquet")` reads them lazily instead.

    Raises:
        ValueError: If the folder holds no shards.
    """
    import datasets

    storage, names = _shards_in(folder)
    # Escaped, since `datasets` takes a folder such as `run[1]` for a pattern
    return datasets.Dataset.from_parquet([escape(storage.location(name)) for name in names])


def open_shards(folder: str | os.PathLike) -> Any:
    """The rows in a folder of shards as a `pyarrow.dataset.Dataset`, which reads them lazily, in order.

    Raises:
        ValueError: If the folder holds no shards.
    """
    storage, names = _shards_in(folder)
    return storage.parquet(names)


def _shards_in(folder: str | os.PathLike) -> tuple[Storage, list[str]]:
    """The names of the shards in a folder, in order, with a warning if some are missing."""
    storage = open_storage(folder)
    manifest = _manifest_in(storage)
    if manifest is None:
        raise ValueError(f"{folder} has no {MANIFEST}; expected what `promptcam explain --format parquet` writes.")
    there = set(storage.names())
    wanted = [shard_name(shard, manifest["num_shards"]) for shard in range(manifest["num_shards"])]
    names = [name for name in wanted if name in there]
    if not names:
        raise ValueError(f"{folder} holds no shards yet.")
    if len(names) < len(wanted):
        missing = len(wanted) - len(names)
        logger.warning("%s: %d of %d shards missing; run the same command again.", folder, missing, len(wanted))
    return storage, names
