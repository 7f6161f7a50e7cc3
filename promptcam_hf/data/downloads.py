"""Datasets as their authors pack them: CUB-200-2011 and Oxford-IIIT Pet, each with its official split."""

from collections.abc import Iterator
from pathlib import Path

from ..messages import counted
from .source import Row, Source, from_rows


def read_download(folder: Path) -> Source | None:
    """
    Read the unpacked download of CUB-200-2011, or the folder around it, or of Oxford-IIIT Pet.

    Returns:
        The photographs, or None if the folder is neither of them.

    Raises:
        ValueError: If a part of the download is missing or damaged.
    """
    for path in (folder, folder / "CUB_200_2011"):
        if (path / "image_class_labels.txt").is_file():
            return Source("CUB-200-2011", _read_cub(path), path / "images")
    if (folder / "annotations" / "trainval.txt").is_file():
        return Source("Oxford-IIIT Pet", _read_pets(folder), folder / "images")
    return None


def _read_cub(folder: Path) -> dict:
    """CUB-200-2011. Its files name a class like `001.Black_footed_Albatross`."""
    images, numbers, is_train, classes = (
        dict(read_rows(folder / f"{name}.txt", 2))
        for name in ("images", "image_class_labels", "train_test_split", "classes")
    )
    names = {number: name.split(".", 1)[-1] for number, name in classes.items()}
    rows = []
    for image, path in images.items():
        if is_train.get(image) not in ("0", "1") or numbers.get(image) not in classes:
            raise ValueError(f"{folder}: image {image} of images.txt has no split or no class in the other files.")
        split = "train" if is_train[image] == "1" else "test"
        rows.append(Row(split, folder / "images" / path, names[numbers[image]]))
    return from_rows(rows, [names[number] for number in sorted(names, key=int)])


def _read_pets(folder: Path) -> dict:
    """Oxford-IIIT Pet. An image is named after its class, like `american_bulldog_10`."""
    rows: list[Row] = []
    names: dict[int, str] = {}
    for split, file in (("train", "trainval"), ("test", "test")):
        for image, number, *_ in read_rows(folder / "annotations" / f"{file}.txt", 4):
            name = names.setdefault(int(number), image.rsplit("_", 1)[0])
            rows.append(Row(split, folder / "images" / f"{image}.jpg", name))
    return from_rows(rows, [names[number] for number in sorted(names)])


def read_rows(path: Path, count: int, spaces_in_last: bool = False) -> Iterator[list[str]]:
    """
    The rows of a table with columns separated by spaces and without a header. Empty lines and `#` comments are skipped.

    Args:
        path: The file.
        count: Number of columns.
        spaces_in_last: Whether spaces in the last column separate nothing.

    Raises:
        ValueError: If the file is missing, or a row has another number of columns.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing; expected the complete unpacked download.")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fields = line.strip().split(None, count - 1 if spaces_in_last else -1)
        if not fields or fields[0].startswith("#"):
            continue
        if len(fields) != count:
            raise ValueError(f"{path}, line {number}: {counted(len(fields), 'column')}; expected {count}.")
        yield fields
