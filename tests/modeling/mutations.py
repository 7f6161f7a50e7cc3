"""Damaged photographs: `python -m tests.modeling.mutations` reads 10,000 in 20 formats, and 2,000 with damaged EXIF."""

import io
import random
import struct
import sys
import warnings
from collections import Counter
from collections.abc import Iterator

import numpy as np
from PIL import Image
from promptcam_hf.modeling.images_promptcam import load_photograph

FORMATS = (
    "AVIF",
    "BLP",
    "BMP",
    "DDS",
    "GIF",
    "ICNS",
    "ICO",
    "DIB",
    "JPEG",
    "JPEG2000",
    "MPO",
    "PCX",
    "PNG",
    "PPM",
    "QOI",
    "SGI",
    "TGA",
    "TIFF",
    "WEBP",
    "XBM",
)
EXIF_FORMATS = ("AVIF", "JPEG", "MPO", "PNG", "WEBP")


def encoded(name: str, exif: bytes = b"") -> bytes:
    """A small picture in a format."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 24, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).convert({"XBM": "1", "BLP": "P", "GIF": "P"}.get(name, "RGB"))
    file = io.BytesIO()
    picture.save(
        file, name, **({"exif": exif} if exif else {}), **({"compression": "tiff_lzw"} if name == "TIFF" else {})
    )
    return file.getvalue()


def exif() -> bytes:
    tags = Image.Exif()
    tags[0x0112], tags[0x010F], tags[0x011A] = 6, "maker", 72.0
    tags.get_ifd(0x8769)[0x9286] = b"comment" * 5
    tags.get_ifd(0x8825)[2] = (1.0, 2.0, 3.0)
    return tags.tobytes()


def mutated(content: bytes, random_: random.Random, start: int = 0) -> bytes:
    """The same with some bytes changed after `start`; sometimes cut off."""
    data = bytearray(content)
    for _ in range(random_.choice((1, 1, 2, 4, 16))):
        place = random_.randrange(start, len(data) - 4)
        number = random_.choice((0, 1, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF))
        changes = (random_.randbytes(1), bytes([data[place] ^ 1 << random_.randrange(8)]), struct.pack("<I", number))
        change = random_.choice(changes)
        data[place : place + len(change)] = change
    return bytes(data[: random_.randrange(len(data))] if start == 0 and random_.random() < 0.1 else data)


def damaged_files(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Formats and files, whose bytes were changed anywhere."""
    random_, originals = random.Random(seed), [(name, encoded(name)) for name in FORMATS]
    for number in range(count):
        name, content = originals[number % len(originals)]
        yield name, mutated(content, random_)


def damaged_exif(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Formats and files, of which the EXIF alone was changed: all pixels can be read."""
    random_, original = random.Random(seed), exif()
    avif = encoded("AVIF", original)
    start = avif.index(original[6:10])  # of the header of its EXIF
    stop = avif.index(b"comment", start)
    for number in range(count):
        name = EXIF_FORMATS[number % len(EXIF_FORMATS)]
        damaged = mutated(original, random_, start=len(b"Exif\0\0"))
        if name == "AVIF":  # which Pillow does not write with damaged EXIF
            yield name, avif[:start] + mutated(avif[start:stop], random_, start=4) + avif[stop:]
        else:
            yield name, encoded(name, damaged)


def outcome(content: bytes) -> str:
    """`"read"`, the message if the photograph is refused, or an `AssertionError`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            picture = load_photograph(io.BytesIO(content))
        except ValueError as error:
            message = str(error)
            picture = None
    if picture is None:
        assert len(message.splitlines()) == 1
        return message
    assert picture.mode == "RGB"
    assert len(picture.tobytes()) == 3 * picture.width * picture.height
    return "read"


if __name__ == "__main__":
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    for kind, files in (("EXIF", damaged_exif(2_000, seed)), ("files", damaged_files(10_000, seed))):
        counts: Counter[tuple[str, bool]] = Counter()
        for name, content in files:
            counts[name, outcome(content) == "read"] += 1
        print(kind, {f"{name} {'read' if is_read else 'refused'}": n for (name, is_read), n in sorted(counts.items())})
