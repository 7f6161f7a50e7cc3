"""Shards are written whole, resumed, and divided among processes, whatever happens to these."""

import json
import multiprocessing
import os
import shutil
import signal
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from promptcam_hf.checkpoint import new_image_processor, save_checkpoint
from promptcam_hf.explanation.predictor import PromptCamPredictor, explanations_of
from promptcam_hf.explanation.shards import explain_shards, load_explanations, open_shards

from ..tiny_models import tiny_model

resource = pytest.importorskip("resource")
SIZE, KILLS = 4, 4  # rows of a shard; how often a process is killed


def many_photographs(birds, parent, count, no_image, empty):
    """A folder of a class with copies of birds, named by number, of which two cannot be read."""
    folder, paths = parent / "Scott_Oriole", sorted(birds.glob("t*/*/*.jpg"))
    folder.mkdir()
    for number in range(count):
        shutil.copy(paths[number % len(paths)], folder / f"{number:0{len(str(count - 1))}}.jpg")
    (folder / no_image).write_text("no image")
    (folder / empty).write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def photographs(bird_folder, tmp_path_factory):
    """50 photographs, two of which cannot be read, in the folder of a class."""
    return many_photographs(bird_folder, tmp_path_factory.mktemp("many"), 50, "07.jpg", "30.jpg")


def run(photographs, checkpoint, out, **options):
    return explain_shards(
        photographs, checkpoint, out, **{"shard_size": SIZE, "device": "cpu", "progress": False, **options}
    )


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Rows are the same byte for byte with the same number of threads, and `_process` has one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def undisturbed(photographs, checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "undisturbed"
    result = run(photographs, checkpoint, out)
    assert (result.num_photographs, result.num_errors, result.num_shards, result.num_earlier) == (50, 2, 13, 0)
    return out


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _process(photographs, checkpoint, out, rank, world, largest_file):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    try:
        run(photographs, checkpoint, out)
    except OSError as error:
        print(error)
        os._exit(3)


@pytest.fixture(scope="module")
def start():
    """Start a process that explains; forked off a server that has imported everything."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["promptcam_hf.explanation.shards", __name__])

    def start(photographs, checkpoint, out, rank=0, world=1, largest_file=0):
        process = server.Process(target=_process, args=(photographs, checkpoint, out, rank, world, largest_file))
        process.start()
        return process

    return start


def test_rows_are_those_of_the_predictor(photographs, checkpoint, undisturbed):
    data = load_explanations(undisturbed)
    assert data["photograph"] == [str(path) for path in sorted(photographs.iterdir())]
    columns = PromptCamPredictor(checkpoint, device="cpu", maps=4)(data["photograph"])
    assert data["error"] == columns["error"]
    assert set(data["truth"]) == {"Scott_Oriole"}
    for number, row in enumerate(data):
        if row["error"] is not None:
            assert {name for name, value in row.items() if value is not None} == {"photograph", "error", "truth"}
            continue
        assert (row["label"], row["top_labels"]) == (columns["label"][number], columns["top_labels"][number])
        assert row["score"] == pytest.approx(columns["score"][number], rel=1e-4)
        assert (row["width"], row["height"], row["grid"]) == (64, 64, [4, 4])
        assert row["heads"] == columns["heads"][number].tolist()
        np.testing.assert_allclose(np.asarray(row["maps"]), columns["maps"][number], rtol=2e-3, atol=1e-6)
        ((explanation,), (other,)) = explanations_of(data[number : number + 1], 0), explanations_of(columns, number)
        assert explanation["traits"][0]["peak"] == other["traits"][0]["peak"]


def test_shards_say_where_they_come_from(checkpoint, undisturbed):
    schema = pq.read_schema(undisturbed / "explanations-00012-of-00013.parquet")
    about = json.loads(schema.metadata[b"promptcam"])
    manifest = json.loads((undisturbed / "_manifest.json").read_text())
    assert about == {name: manifest[name] for name in about}
    assert about["model"]["name"] == str(checkpoint)
    assert about["preprocessing"]["image_mean"] == [0.5, 0.5, 0.5]
    assert (about["grid"], about["options"]["top_traits"], len(about["classes"])) == ([4, 4], 4, 5)
    assert [str(schema.field(name).type) for name in ("score", "num_sufficient")] == [
        "float",
        "fixed_size_list<element: int16>[1]",
    ]


def test_killed_again_and_again_the_rows_are_the_same(photographs, checkpoint, undisturbed, tmp_path, start):
    out, random = tmp_path / "out", np.random.default_rng(0)
    for kill in range(KILLS):
        process = start(photographs, checkpoint, out)
        # Once a few more shards are there, at any moment of the next one
        while process.is_alive() and (not out.is_dir() or len(list(out.glob("*.parquet"))) < 13 * kill // KILLS):
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        for path in out.glob("*.parquet"):
            assert path.read_bytes() == (undisturbed / path.name).read_bytes()
    result = run(photographs, checkpoint, out)
    assert result.num_shards + result.num_earlier == 13
    assert {name: content for name, content in files(out).items() if not name.startswith(".")} == files(undisturbed)
    assert run(photographs, checkpoint, out).num_earlier == 13


def test_two_processes_take_disjoint_shards_and_a_lost_one_is_made_good(
    photographs, checkpoint, undisturbed, tmp_path, start
):
    out = tmp_path / "out"
    lost = start(photographs, checkpoint, out, rank=1, world=2)
    lost.join()
    odd = [path for number, path in enumerate(sorted(undisturbed.glob("*.parquet"))) if number % 2]
    assert sorted(path.name for path in out.glob("*.parquet")) == [path.name for path in odd]
    (out / odd[2].name).unlink()
    both = [start(photographs, checkpoint, out, rank=rank, world=2) for rank in (0, 1)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert files(out) == files(undisturbed)


def test_a_full_disk_stops_cleanly(photographs, checkpoint, undisturbed, tmp_path, start):
    out = tmp_path / "out"
    smallest = min(len(content) for name, content in files(undisturbed).items() if name.endswith(".parquet"))
    process = start(photographs, checkpoint, out, largest_file=smallest - 1)
    process.join()
    assert process.exitcode == 3
    assert [path.name for path in out.iterdir()] == ["_manifest.json"]
    run(photographs, checkpoint, out)
    assert files(out) == files(undisturbed)


def test_another_model_input_or_options_are_refused(photographs, checkpoint, undisturbed, tmp_path):
    other = tmp_path / "other"
    save_checkpoint(tiny_model("vit", 2, num_labels=5), new_image_processor(32), other)
    fewer = sorted(photographs.iterdir())[:-1]
    renamed = [*fewer, tmp_path / "other.jpg"]
    before = files(undisturbed)
    for arguments, message in (
        ({"checkpoint": other}, r"its model differed \(name: .* then, .* now\)"),
        ({"top_traits": 2}, r"its options differed \(top_traits: 4 then, 2 now\)"),
        ({"shard_size": 5}, r"its shard_size differed \(4 then, 5 now\)"),
        ({"photographs": fewer}, "its photographs differed;"),
        ({"photographs": renamed}, "its photographs differed;"),
    ):
        given = {"photographs": photographs, "checkpoint": checkpoint} | arguments
        with pytest.raises(ValueError, match=message):
            run(given.pop("photographs"), given.pop("checkpoint"), undisturbed, **given)
        assert files(undisturbed) == before
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else; expected a new or empty folder"):
        run(photographs, checkpoint, tmp_path)
    (tmp_path / "mine.txt").unlink()


def test_changed_weights_are_another_model(photographs, checkpoint, tmp_path):
    model = shutil.copytree(checkpoint, tmp_path / "model")
    run(sorted(photographs.iterdir())[:2], model, tmp_path / "out")
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match=r"its model differed \(weights: "):
        run(sorted(photographs.iterdir())[:2], model, tmp_path / "out")


def test_missing_shards_are_told(photographs, checkpoint, undisturbed, tmp_path, caplog):
    part = shutil.copytree(undisturbed, tmp_path / "part")
    (part / "explanations-00001-of-00013.parquet").unlink()
    assert len(load_explanations(part)) == 46
    assert "1 of 13 shards missing; run the same command again" in caplog.text
    with pytest.raises(ValueError, match=r"has no _manifest\.json; expected what `promptcam explain"):
        load_explanations(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="no such file names")
def test_folders_whose_names_could_be_patterns_or_uris_hold_what_was_written(
    photographs, checkpoint, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    paths, names = sorted(photographs.iterdir()), ("run1", "run[1]", "run*", "s3:run")
    for count, name in enumerate(names, start=1):
        explain_shards(paths[:count], checkpoint, name, device="cpu", progress=False)
    for count, name in enumerate(names, start=1):
        assert (len(load_explanations(name)), open_shards(name).count_rows()) == (count, count)
    assert len(load_explanations(tmp_path / "run[1]")) == 2


def test_shards_may_go_to_a_bucket(photographs, checkpoint, undisturbed, tmp_path):
    """A disk stands in for it: what pyarrow writes by a URI it writes alike."""
    bucket = f"file://{tmp_path}/some%20bucket/out"
    assert run(photographs, checkpoint, bucket).num_shards == 13
    out = tmp_path / "some bucket" / "out"
    assert files(out) == files(undisturbed)
    (out / "explanations-00003-of-00013.parquet").unlink()
    assert run(photographs, checkpoint, bucket).num_earlier == 12
    assert files(out) == files(undisturbed)
    assert load_explanations(bucket)["photograph"] == load_explanations(undisturbed)["photograph"]
    with pytest.raises(ValueError, match="its options differed"):
        run(photographs, checkpoint, bucket, top_traits=2)
    (out / "_manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"file://.*/_manifest\.json is damaged"):
        load_explanations(bucket)
