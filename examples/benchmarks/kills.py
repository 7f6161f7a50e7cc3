"""Kill `promptcam explain --format parquet` again and again, and compare what it leaves with an undisturbed run.

    python examples/benchmarks/kills.py --data photos/ --output kills.json
    python examples/benchmarks/kills.py --engine ray --kills 1

The photographs of a folder, or drawn birds, are hard-linked under 3,000 names and explained with the model that ships
with the package. The command is killed at random moments (with `--engine ray`: one of its workers, in the middle of the
work), started again each time, and at last allowed to finish. Then every shard must equal that of the undisturbed run,
byte for byte, and the rows must name each photograph once.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from promptcam_hf import demo, load_explanations
from promptcam_hf.data.image_files import find_photographs

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from examples.benchmarks.many import drawn_birds, link_photographs


def start(folder: Path, out: Path, engine: str, shard_size: int) -> subprocess.Popen:
    options = ["--format", "parquet", "--shard-size", str(shard_size), "--engine", engine]
    options += ["--num-gpus", "0", "--num-actors", "2"] if engine == "ray" else ["--device", "cpu"]
    command = [sys.executable, "-m", "promptcam_hf", "explain", folder / "photographs"]
    command += ["--model", demo.MODEL, "--output-dir", out, *options]
    return subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)


def count(out: Path) -> int:
    return len(list(out.glob("explanations-*.parquet")))


def kill_command(folder: Path, out: Path, arguments: argparse.Namespace, shards: int, seconds: float) -> list[int]:
    """Kill the command at random moments: each fourth time while it starts, and else after some more shards, with as
    many left as the next kills need. Returns how many shards there were each time."""
    moments: list[int] = []
    for kill in range(arguments.kills):
        process, before = start(folder, out, "local", arguments.shard_size), count(out)
        more = random.randint(0, (shards - before) // (arguments.kills - kill))
        while kill % 4 and process.poll() is None and count(out) < before + more:
            time.sleep(0.01)
        time.sleep(random.uniform(0, seconds / (2 if kill % 4 == 0 else shards)))
        process.kill()
        if process.wait() == -signal.SIGKILL:
            moments.append(count(out))
            print(f"killed with {moments[-1]} shards there", flush=True)
    return moments


def kill_workers(process: subprocess.Popen, out: Path, kills: int, shards: int) -> list[int]:
    """Kill workers of a run on Ray, spread over its work. Returns how many shards there were each time."""
    moments = []
    for kill in range(kills):
        while process.poll() is None and count(out) < shards * (kill + 1) // (kills + 1):
            time.sleep(0.01)
        children = psutil.Process(process.pid).children(recursive=True)
        workers = [child for child in children if "MapWorker" in "".join(child.cmdline())]
        workers[0].kill()
        moments.append(count(out))
        print(f"killed a worker with {moments[-1]} shards there", flush=True)
    return moments


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    random.seed(arguments.seed)
    data = arguments.data
    files = drawn_birds(folder / "drawn", 100) if data is None else find_photographs(data)[0]
    link_photographs(files, folder / "photographs", arguments.photographs)
    begin = time.perf_counter()
    assert start(folder, folder / "undisturbed", "local", arguments.shard_size).wait() == 0
    seconds = time.perf_counter() - begin  # of the whole command
    out, shards = folder / "killed", count(folder / "undisturbed")
    if arguments.engine == "ray":
        process = start(folder, out, "ray", arguments.shard_size)
        moments = kill_workers(process, out, arguments.kills, shards)
        assert process.wait() == 0
    else:
        moments = kill_command(folder, out, arguments, shards, seconds)
        assert start(folder, out, "local", arguments.shard_size).wait() == 0
    names = sorted(load_explanations(out)["photograph"])
    return {
        "photographs": arguments.photographs,
        "shards": shards,
        "kills": len(moments),
        "shards_at_each_kill": moments,
        "each_photograph_once": names == sorted(map(str, (folder / "photographs").glob("*/*"))),
        "files_equal": all(
            path.read_bytes() == (out / path.name).read_bytes() for path in (folder / "undisturbed").iterdir()
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of photographs; default: drawn birds")
    parser.add_argument("--photographs", type=int, default=3000)
    parser.add_argument("--shard-size", type=int, default=50)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the moments")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(arguments, Path(folder))
    print(json.dumps(results, indent=1))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
