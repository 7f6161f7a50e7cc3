"""How long the command line takes to answer when it needs no model.

python examples/benchmarks/start.py

Prints the median and the slowest of several starts, in seconds, next to a Python that does nothing.
"""

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python that does nothing": ["-c", "pass"],
    "promptcam --version": ["-m", "promptcam_hf", "--version"],
    "promptcam --help": ["-m", "promptcam_hf", "--help"],
    "promptcam train --help": ["-m", "promptcam_hf", "train", "--help"],
    "import promptcam_hf": ["-c", "import promptcam_hf"],
    "import promptcam_hf, transformers": ["-c", "import promptcam_hf, transformers"],
}


def seconds(arguments: list[str]) -> float:
    """Run Python once and return the wall time."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="Starts per command, after one that is not counted.")
    rounds = parser.parse_args().rounds
    for name, arguments in COMMANDS.items():
        seconds(arguments)
        times = [seconds(arguments) for _ in range(rounds)]
        print(f"{name:<36} {statistics.median(times):6.2f} s, slowest {max(times):.2f} s")


if __name__ == "__main__":
    main()
