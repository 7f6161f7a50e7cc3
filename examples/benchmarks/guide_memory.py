"""Does the memory of `promptcam guide` grow with the number of photographs?

    python examples/benchmarks/guide_memory.py --photographs 1000 10000

Draws 160 small birds, links each of them as often as needed, makes a guide with the model that ships, and prints the
largest resident memory of the process and the seconds it took.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from promptcam_hf import demo
from promptcam_hf.demo.dataset import write_image_folder

CLASSES, DRAWN, SIZE = 16, 5, 64  # species; pictures of each in a split; pixels

# Prints the peak memory of this process alone, without that of the processes that read photographs
CHILD = """
import resource, sys
from promptcam_hf.guide.site import make_guide
result = make_guide(*sys.argv[1:4], num_workers=0, progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def enlarge(birds: Path, folder: Path, count: int) -> None:
    """Link the drawn birds so often that there are `count` photographs."""
    drawn = sorted(birds.glob("t*/*/*.jpg"))
    for number in range(count):
        bird = drawn[number % len(drawn)]
        link = folder / bird.relative_to(birds).with_name(f"{number:06d}.jpg")
        link.parent.mkdir(parents=True, exist_ok=True)
        os.link(bird, link)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photographs", type=int, nargs="+", default=[1000, 10000], help="numbers to compare")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_image_folder(folder / "birds", CLASSES, DRAWN, DRAWN, size=SIZE, progress=False)
        for count in args.photographs:
            enlarge(folder / "birds", folder / f"photos_{count}", count)
            command = [sys.executable, "-c", CHILD, demo.MODEL, folder / f"photos_{count}", folder / f"guide_{count}"]
            start = time.monotonic()
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
            memory, seconds = float(done.stdout.split()[-1]), time.monotonic() - start
            print(f"{count:6d} photographs: {memory:.0f} MB, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
