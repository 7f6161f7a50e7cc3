"""Small photographs, folders and tables for the tests."""

import io

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def encoded(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 10), (number, 0, 0)).save(file, "PNG")
    return file.getvalue()


def table(labels: list, image: str = "image", label: str = "label") -> pa.Table:
    images = [{"bytes": encoded(number), "path": None} for number in range(len(labels))]
    return pa.table({image: images, label: labels})


def write(path, contents: pa.Table | str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(contents, pa.Table):
        pq.write_table(contents, path)
    else:
        path.write_bytes(contents.encode() if isinstance(contents, str) else contents)


def classes_of(split: datasets.Dataset) -> list[str]:
    return split.features["label"].int2str(split["label"][:])


def folder_with(root, *files: str):
    for number, name in enumerate(files):
        write(root / name, encoded(number))
    return root
