import gc
import threading
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from promptcam_hf import PromptCamForImageClassification
from promptcam_hf.checkpoint import open_pipeline
from promptcam_hf.explanation.predictor import PromptCamPredictor, Source, explanations_of


@pytest.fixture(scope="module")
def photographs(bird_folder):
    return sorted(bird_folder.glob("test/*/*.jpg"))[:6]


@pytest.fixture(scope="module")
def expected(checkpoint, photographs):
    pipe = open_pipeline(checkpoint, device="cpu", heatmaps=False)
    return pipe([str(path) for path in photographs], top_k=5, top_traits=4)


def test_columns_are_those_of_the_pipeline(checkpoint, photographs, expected):
    columns = PromptCamPredictor(checkpoint, device="cpu", top_k=3, maps=2, explained=2)(photographs)
    assert columns["photograph"] == [str(path) for path in photographs]
    assert columns["error"] == [None] * 6
    assert columns["label"] == [rows[0]["label"] for rows in expected]
    assert columns["top_labels"] == [[row["label"] for row in rows[:3]] for rows in expected]
    scores = np.array([[row["score"] for row in rows[:3]] for rows in expected], np.float32)
    np.testing.assert_allclose(columns["top_scores"], scores, rtol=1e-5)
    np.testing.assert_array_equal(columns["score"], columns["top_scores"][:, 0])
    assert columns["maps"].shape == (6, 2, 2, 4, 4)
    assert columns["heads"].shape == (6, 2, 4)
    for number, rows in enumerate(expected):
        for explanation, other in zip(explanations_of(columns, number), rows, strict=False):
            assert explanation["label"] == other["label"]
            assert explanation["num_sufficient"] == other["num_sufficient"]
            for trait, wanted in zip(explanation["traits"], other["traits"], strict=False):
                assert (trait["rank"], trait["head"]) == (wanted["rank"], wanted["head"])
                np.testing.assert_allclose(trait["map"], wanted["map"], rtol=1e-4, atol=1e-6)
    without = PromptCamPredictor(checkpoint, device="cpu", top_k=3)(photographs)
    np.testing.assert_allclose(without["top_scores"], scores, rtol=1e-5)
    assert "maps" not in without


def test_photographs_come_as_paths_bytes_pictures_and_arrays(checkpoint, photographs):
    path = photographs[0]
    picture = Image.open(path)
    batch = [path, str(path), path.read_bytes(), picture, np.asarray(picture), Source("bird", path, "Scott_Oriole")]
    columns = PromptCamPredictor(checkpoint, device="cpu")(batch)
    assert columns["photograph"] == [str(path), str(path), "2", "3", "4", "bird"]
    assert columns["truth"] == [None] * 5 + ["Scott_Oriole"]
    np.testing.assert_allclose(columns["top_scores"], columns["top_scores"][[0] * 6], rtol=1e-5)


def test_bad_rows_say_why_and_stop_nothing(checkpoint, photographs, tmp_path):
    def broken():
        raise ValueError("bird.tar: the photograph is cut off.")

    (tmp_path / "bad.jpg").write_text("no image")
    batch = [
        tmp_path / "bad.jpg",
        photographs[0],
        Source("row 2", b"no image"),
        None,
        Source("cut", broken),
        photographs[1],
    ]
    predictor = PromptCamPredictor(checkpoint, device="cpu", maps=1)
    columns = predictor(batch)
    assert [error is None for error in columns["error"]] == [False, True, False, False, False, True]
    assert columns["error"][0].startswith(f"{tmp_path / 'bad.jpg'}: not an image")
    assert columns["error"][2].startswith("row 2: not an image")
    assert columns["error"][4] == "bird.tar: the photograph is cut off."
    assert [label is None for label in columns["label"]] == [True, False, True, True, True, False]
    assert np.isnan(columns["score"]).tolist() == [True, False, True, True, True, False]
    alone = predictor([photographs[0], photographs[1]])
    np.testing.assert_allclose(columns["maps"][[1, 5]], alone["maps"], rtol=1e-4, atol=1e-6)
    none = predictor(batch[:1])
    assert {name: np.shape(column)[1:] for name, column in none.items() if isinstance(column, np.ndarray)} == {
        name: column.shape[1:] for name, column in alone.items() if isinstance(column, np.ndarray)
    }


def test_only_some_classes_can_be_the_answer(checkpoint, photographs, expected):
    kept = ["Hooded_Oriole", "Indigo_Bunting", "Scott_Oriole"]
    columns = PromptCamPredictor(checkpoint, device="cpu", only=kept, maps=1, explained=4)(photographs)
    pipe = open_pipeline(checkpoint, device="cpu", heatmaps=False)
    for number, rows in enumerate(expected):
        rest = [row for row in rows if row["label"] in kept]
        total = sum(row["score"] for row in rest)
        assert columns["top_labels"][number] == columns["explained"][number] == [row["label"] for row in rest]
        np.testing.assert_allclose(columns["top_scores"][number], [row["score"] / total for row in rest], rtol=1e-4)
        # The first of them is now classified as such, unless it still is with all heads blurred
        first = pipe(str(photographs[number]), top_k=3, only=kept)[0]
        assert (first["label"], first["num_sufficient"]) == (rest[0]["label"], columns["num_sufficient"][number, 0])
        assert [trait["head"] for trait in first["traits"]][:1] == columns["heads"][number, 0, :1].tolist()
        assert (columns["num_sufficient"][number, 1:] == 0).all()


def test_temperature_calibrates_every_score(checkpoint, photographs):
    pipe = open_pipeline(checkpoint, device="cpu", heatmaps=False)
    logits = pipe.model(pipe.preprocess(str(photographs[0]))["pixel_values"]).logits
    pipe.model.config.temperature = 2.5
    wanted = (logits / 2.5).softmax(-1).max().item()
    assert PromptCamPredictor(pipe)(photographs[:1])["score"][0] == pytest.approx(wanted, rel=1e-5)
    assert pipe(str(photographs[0]))[0]["score"] == pytest.approx(wanted, rel=1e-5)


def test_a_stream_reads_ahead_but_not_far(checkpoint, photographs):
    taken = []

    def sources():
        for number in range(100):
            taken.append(number)
            yield photographs[number % 6]

    stream = PromptCamPredictor(checkpoint, device="cpu").stream(sources(), batch_size=4)
    counts = [(len(next(stream)["label"]), len(taken)) for _ in range(3)]
    assert counts == [(4, 8), (4, 12), (4, 16)]
    stream.close()
    assert len(taken) == 16
    sizes = [len(columns["label"]) for columns in PromptCamPredictor(checkpoint).stream(photographs, batch_size=4)]
    assert sizes == [4, 2]


def test_threads_may_share_a_predictor_and_prompts_are_not_cached_for_others(checkpoint, photographs):
    predictor = PromptCamPredictor(checkpoint, device="cpu")
    wanted, found = predictor(photographs)["top_scores"], {}

    def predict(number, predictor):
        found[number] = predictor(photographs)["top_scores"]

    threads = [threading.Thread(target=predict, args=(number, predictor)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(3):
        np.testing.assert_array_equal(found[number], wanted)
    model: PromptCamForImageClassification = predictor.model
    pixel_values = torch.zeros(1, 3, 32, 32)
    before = model(pixel_values).logits
    with torch.no_grad():
        model.class_prompts.normal_()
        assert not torch.allclose(model(pixel_values).logits, before)
    reference = weakref.ref(predictor)
    del predictor, threads, thread
    gc.collect()
    assert reference() is None


def test_other_data_types(checkpoint, photographs):
    wanted = PromptCamPredictor(checkpoint, device="cpu")(photographs)["top_scores"]
    found = PromptCamPredictor(checkpoint, device="cpu", dtype="bfloat16")(photographs)["top_scores"]
    assert 0 < np.abs(found - wanted).max() < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 0}, "top_k=0: expected 1 or more"),
        ({"maps": -1}, "maps=-1: expected 0 or more"),
        ({"explained": 0}, "explained=0: expected 1 or more"),
        ({"explained": ["Scot_Oriole"]}, "knows no class 'Scot_Oriole'; expected 'Scott_Oriole'"),
        ({"only": ["Scott_Oriole"]}, r"only=\['Scott_Oriole'\]: expected 2 classes or more"),
        ({"dtype": "int8"}, "dtype=int8: expected float32, bfloat16, float16"),
    ],
)
def test_arguments_that_do_not_fit(checkpoint, arguments, message):
    with pytest.raises(ValueError, match=message):
        PromptCamPredictor(checkpoint, device="cpu", **arguments)
