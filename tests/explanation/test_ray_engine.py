"""On a Ray cluster, whatever happens to its processes, the shards are those of one process."""

import os
import shutil
import signal
import threading
import time

import psutil
import pyarrow.parquet as pq
import pytest

from promptcam_hf.explanation.ray_engine import explain_on_ray
from promptcam_hf.explanation.shards import explain_shards, load_explanations

ray = pytest.importorskip("ray", reason="needs pip install '.[ray]'")


@pytest.fixture(scope="module")
def cluster():
    """Two workers on this machine."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def photographs(bird_folder, tmp_path_factory):
    """400 photographs, two of which cannot be read."""
    folder = tmp_path_factory.mktemp("many") / "Scott_Oriole"
    folder.mkdir()
    birds = sorted(bird_folder.glob("t*/*/*.jpg"))
    for number in range(400):
        os.link(birds[number % len(birds)], folder / f"{number:03}.jpg")
    for name, content in (("007.jpg", b"no image"), ("300.jpg", b"")):
        (folder / name).unlink()
        (folder / name).write_bytes(content)
    return folder


def kill_one_worker(out, shards_before):
    """Kill one of the processes that explain as soon as it is in the middle of the work."""
    while len(list(out.glob("*.parquet"))) < shards_before:
        time.sleep(0.005)
    workers = [p for p in psutil.Process().children(recursive=True) if "MapWorker" in "".join(p.cmdline())]
    os.kill(workers[0].pid, signal.SIGKILL)


def test_with_a_worker_killed_nothing_is_lost_and_nothing_is_there_twice(cluster, photographs, checkpoint, tmp_path):
    options = {"shard_size": 8, "progress": False}
    expected = tmp_path / "expected"
    explain_shards(photographs, checkpoint, expected, device="cpu", **options)
    out = tmp_path / "out"
    shutil.copytree(expected, out)  # as if a run of one process had been stopped here
    for path in sorted(out.glob("*.parquet"))[2:]:
        path.unlink()
    killer = threading.Thread(target=kill_one_worker, args=(out, 8))
    killer.start()
    result = explain_on_ray(photographs, checkpoint, f"file://{out}", num_actors=2, **options)
    killer.join()
    assert (result.num_shards, result.num_earlier, result.num_photographs, result.num_errors) == (48, 2, 384, 1)
    errors = pq.read_table(out / "_errors.parquet")
    (out / "_errors.parquet").unlink()
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    assert files == {path.name: path.read_bytes() for path in expected.iterdir()}
    rows = load_explanations(out)
    assert rows["photograph"] == [str(path) for path in sorted(photographs.iterdir())]
    assert errors.column("photograph").to_pylist() == [str(photographs / "007.jpg"), str(photographs / "300.jpg")]
    assert all("not an image" in error for error in errors.column("error").to_pylist())
