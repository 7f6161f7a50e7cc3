"""Explain millions of photographs, into parquet files of a fixed number of rows. They are written whole, so that the
work can be taken up again, and divided among processes.

`_manifest.json` says what the folder holds: the model, the options and a fingerprint of the input. Shard i holds the
photographs i * shard_size and the following, whatever happens. A shard is done if, and only if, its file is there.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..checkpoint import weight_files
from ..files import LOCK, as_text, naming_the_file, only_run_in, write_atomically
from ..messages import check_counts
from ..version import __version__
from .explain import check_options
from .predictor import PromptCamPredictor
from .sources import collect

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
        photographs: As for `collect`: files, folders, lists, tar and parquet files, data sets.
        model: Checkpoint folder or Hub id.
        output_dir: Folder for the shards: new, or of the same run.
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
    check_counts(shard_size=shard_size)
    check_options(top_k, classes, top_traits, batch_size)
    collection = collect(photographs)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    explained = (top_k or 1) if classes is None else classes
    predictor = PromptCamPredictor(
        model, device=_own_device(device, world), maps=top_traits, explained=explained, **predictor_options
    )
    options: dict[str, Any] = {
        name: str(value) for name, value in predictor_options.items() if name not in ("backbone", "num_workers")
    }
    options |= {"explained": explained, "top_traits": top_traits, "dtype": str(predictor.dtype)}
    manifest = _manifest(predictor, model, options, collection, shard_size)
    with _begin(Path(output_dir), manifest, rank):
        return _work(predictor, collection, Path(output_dir), manifest, (rank, world), batch_size, progress)


def shard_name(shard: int, num_shards: int) -> str:
    """The file name of a shard, counted from 0."""
    return f"explanations-{shard:05d}-of-{num_shards:05d}.parquet"


def _work(
    predictor: PromptCamPredictor,
    collection: Any,
    folder: Path,
    manifest: dict[str, Any],
    part: tuple[int, int],
    batch_size: int,
    progress: bool,
) -> ShardsResult:
    """Write the shards of this process, `part[0]` of `part[1]`, that are not there yet."""
    size, total, num_shards = manifest["shard_size"], manifest["num_photographs"], manifest["num_shards"]
    schema = row_schema(predictor).with_metadata({METADATA: json.dumps(_described(manifest))})
    paths = {shard: folder / shard_name(shard, num_shards) for shard in range(part[0], num_shards, part[1])}
    missing = {shard: path for shard, path in paths.items() if not path.exists()}
    ranges = {shard: (shard * size, min((shard + 1) * size, total)) for shard in missing}
    num_photographs, num_errors = sum(stop - start for start, stop in ranges.values()), 0
    with tqdm(
        total=num_photographs, desc="explaining", unit="photo", disable=not (progress and part[0] == 0)
    ) as progress_bar:
        for shard, path in missing.items():
            batches = []
            for columns in predictor.stream(collection.read(*ranges[shard]), batch_size):
                batches.append(_as_arrow(columns, schema, predictor.grid))
                num_errors += sum(error is not None for error in columns["error"])
                progress_bar.update(len(columns["error"]))
            write_atomically(path, _parquet(batches, schema))
    return ShardsResult(num_photographs, num_errors, len(missing), len(paths) - len(missing))


# --- The run ----------------------------------------------------------------------------------------------------------


def _own_device(device: str | int | None, world: int) -> str | int | None:
    """Of several processes of a machine, each takes a GPU of its own."""
    if device is not None or world == 1 or not torch.accelerator.is_available():
        return device
    return int(os.environ.get("LOCAL_RANK", "0")) % torch.accelerator.device_count()


def _manifest(
    predictor: PromptCamPredictor, model: str | os.PathLike, options: dict[str, Any], collection: Any, shard_size: int
) -> dict[str, Any]:
    config: Any = predictor.model.config
    folder = Path(model).expanduser()
    return {
        "model": {
            "name": os.fspath(model),
            "commit": getattr(config, "_commit_hash", None),
            "weights": _weights_digest(folder) if folder.is_dir() else None,
        },
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


@contextmanager
def _begin(folder: Path, manifest: dict[str, Any], rank: int) -> Iterator[None]:
    """Write the manifest, or refuse a folder with that of another run, or whose part is being worked on."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []  # before another process writes there
    found = read_manifest(folder)
    if found is not None:
        _check_same(folder, found, manifest)
    elif any(not name.startswith(".") for name in names):
        raise ValueError(f"{folder} holds something else; expected a new or empty folder, or one of the same run.")
    with only_run_in(folder, f"{LOCK}-{rank}"):
        if found is None:
            _write_manifest(folder / MANIFEST, manifest, rank)
        yield


def _write_manifest(path: Path, manifest: dict[str, Any], rank: int) -> None:
    """All processes write the same; under a name of their own, since each may be the first."""
    draft = path.with_name(f".{path.name}.{rank}")
    write_atomically(draft, json.dumps(manifest, indent=1, ensure_ascii=False))
    with naming_the_file(path):
        os.replace(draft, path)


def read_manifest(folder: str | os.PathLike) -> dict[str, Any] | None:
    """
    What a folder of shards says of itself: `model`, `options`, `input`, `num_photographs`, `shard_size`, `num_shards`,
    `version`, `classes`, `grid` and `preprocessing`. None if there is no manifest.

    Raises:
        ValueError: If it is damaged.
    """
    path = Path(folder, MANIFEST)
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        return {name: manifest[name] for name in (*FIXED, *manifest)}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged; expected what `promptcam explain --format parquet` writes.") from None


def _check_same(folder: Path, found: dict[str, Any], manifest: dict[str, Any]) -> None:
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

    - **photograph**: its path, URL, or place in a tar or parquet file or data set; **error**: why it could not be read
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

    files = shard_files(folder)
    return datasets.Dataset.from_parquet([str(file) for file in files])


def shard_files(folder: str | os.PathLike) -> list[Path]:
    """The shards in a folder, in order, with a warning if some are missing.

    Raises:
        ValueError: If it holds none.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise ValueError(f"{folder} has no {MANIFEST}; expected what `promptcam explain --format parquet` writes.")
    names = [shard_name(shard, manifest["num_shards"]) for shard in range(manifest["num_shards"])]
    files = [path for path in (Path(folder, name) for name in names) if path.is_file()]
    if not files:
        raise ValueError(f"{folder} holds no shards yet.")
    if len(files) < len(names):
        missing = len(names) - len(files)
        logger.warning("%s: %d of %d shards are missing; run the same command again.", folder, missing, len(names))
    return files
