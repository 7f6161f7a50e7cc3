"""On a Ray cluster, whatever happens to its processes, the shards are those of one process."""

import os
import pickle
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import datasets
import psutil
import pyarrow.parquet as pq
import pytest

from promptcam_hf.explanation.ray_engine import explain_on_ray, stretches
from promptcam_hf.explanation.shards import explain_shards, load_explanations
from promptcam_hf.explanation.sources import collect

from ..command_line import promptcam
from .test_shards import many_photographs
from .test_sources import contents, photographs, table, tar  # noqa: F401


@pytest.fixture(scope="module")
def cluster():
    """Two workers on this machine."""
    ray = pytest.importorskip("ray", reason="needs pip install '.[ray]'")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def many(bird_folder, tmp_path_factory):
    """200 photographs, two of which cannot be read."""
    return many_photographs(bird_folder, tmp_path_factory.mktemp("many"), 200, "007.jpg", "150.jpg")


def kill_one_worker(out, shards_before):
    """Kill one of the processes that explain as soon as it is in the middle of the work."""
    end = time.monotonic() + 240
    while len(list(out.glob("*.parquet"))) < shards_before:
        assert time.monotonic() < end
        time.sleep(0.005)
    workers = [p for p in psutil.Process().children(recursive=True) if "MapWorker" in "".join(p.cmdline())]
    os.kill(workers[0].pid, signal.SIGKILL)
    assert len(list(out.glob("*.parquet"))) < 50  # there was work left


def test_with_a_worker_killed_nothing_is_lost_and_nothing_is_there_twice(cluster, many, checkpoint, tmp_path):
    options = {"shard_size": 4, "progress": False}
    expected = tmp_path / "expected"
    explain_shards(many, checkpoint, expected, device="cpu", **options)
    (expected / "x-ray-notes.txt").write_text("of somebody else")
    out = tmp_path / "out"
    shutil.copytree(expected, out)  # as if a run of one process had been stopped here
    for path in sorted(out.glob("*.parquet"))[2:]:
        path.unlink()
    with ThreadPoolExecutor() as threads:
        killer = threads.submit(kill_one_worker, out, 8)
        result = explain_on_ray(many, checkpoint, f"file://{out}", num_actors=2, **options)
    killer.result()
    assert (result.num_shards, result.num_earlier, result.num_photographs, result.num_errors) == (48, 2, 192, 1)
    errors = pq.read_table(out / "_errors.parquet")
    (out / "_errors.parquet").unlink()
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    assert files == {path.name: path.read_bytes() for path in expected.iterdir()}
    rows = load_explanations(out)
    assert rows["photograph"] == [str(path) for path in sorted(many.iterdir())]
    assert errors.column("photograph").to_pylist() == [str(many / "007.jpg"), str(many / "150.jpg")]
    assert [row["error"] for row in rows if row["error"]] == errors.column("error").to_pylist()


def test_a_shard_is_sent_to_a_worker_without_the_rest_of_the_photographs(tar, table, photographs):  # noqa: F811
    collection = collect([*photographs, tar, table])
    for start in range(0, len(collection), 3):
        stop = min(start + 3, len(collection))
        sent = pickle.loads(pickle.dumps(stretches(collection, start, stop)))
        found = [item for part in sent for item in contents(part.collection, part.start, part.stop)]
        assert found == contents(collection, start, stop)
    (first,) = stretches(collection, 0, 2)
    assert first.collection.files() == [str(path) for path in photographs[:2]]
    data = datasets.Dataset.from_parquet(str(table))
    with pytest.raises(ValueError, match="the engine ray reads no datasets; download its parquet files"):
        stretches(collect(data), 0, 1)


def test_bad_options_are_refused_before_a_cluster_starts(photographs, checkpoint, tmp_path):  # noqa: F811
    pytest.importorskip("ray", reason="needs pip install '.[ray]'")
    for options, message in (
        ({"num_actors": 0}, "num_actors=0: expected 1 or more"),
        ({"num_gpus": -1}, "num_gpus=-1: expected 0 or more"),
        ({"shard_size": 0}, "shard_size=0: expected 1 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            explain_on_ray(photographs, checkpoint, tmp_path / "out", **options)
    command = ["explain", str(photographs[0]), "--model", str(checkpoint), "--output-dir", str(tmp_path / "out")]
    for options, message in (
        (["--engine", "ray"], "--engine ray needs --format parquet."),
        (["--format", "parquet", "--num-gpus", "1"], "--num-actors and --num-gpus need --engine ray."),
        (["--format", "parquet", "--engine", "ray", "--device", "cpu"], "leave out --device; --num-gpus says whether"),
    ):
        done = promptcam(*command, *options)
        assert done.exit_code == 1
        assert message in done.stderr
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="nowhere://bucket: no file system for it"):
        explain_on_ray(photographs, checkpoint, "nowhere://bucket")
