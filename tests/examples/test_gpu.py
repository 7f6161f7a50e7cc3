"""`examples/benchmarks/gpu.py` works the day that a GPU is there: with a tiny model it runs on a CPU."""

import numpy as np
import torch

from examples.benchmarks import gpu
from examples.benchmarks.forward import take_turns

CPU = torch.device("cpu")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_the_whole_table_is_written(tmp_path):
    gpu.main(["--tiny", "--device", "cpu", "--output", str(tmp_path / "gpu.md")])
    text = (tmp_path / "gpu.md").read_text()
    head, _, *rows = [cells(line) for line in text.splitlines() if line.startswith("|") and "photographs a" not in line]
    measured, speeds = rows[: len(rows) - 4], rows[-3:]
    assert [tuple(row[:3]) for row in measured] == [
        (case.arithmetic, str(case.classes), str(case.batch_size)) for case in gpu.cases(gpu.TINY_SIZES)
    ]
    for row in measured:
        assert len(row) == len(head)
        with_textbook = row[:2] in (["bf16", "5"], ["TF32", "5"])
        assert [name for name, cell in zip(head, row, strict=True) if cell == ""] == (
            [] if with_textbook else ["textbook, times bare", "textbook, times limit"]
        )
        assert all(np.isfinite(float(cell)) for cell in row[1:] if cell)
    assert [row[0] for row in speeds] == ["bare backbone", "predict", "explain"]
    assert all(float(row[2]) > 0 for row in speeds)


def test_a_row_that_fails_is_a_row():
    case = gpu.Case("TF32", classes=5, batch_size=10**12)  # pixels of 12 PB
    row = cells(gpu.row(case, CPU, tiny=True, rounds=1))
    assert row[:4] == ["TF32", "5", str(10**12), "failed (RuntimeError)"]
    assert torch.get_float32_matmul_precision() == "highest"
    assert len(row) == len(cells(gpu.HEAD.splitlines()[0]))


def test_what_does_not_fit_into_memory_does_not_stop_the_others():
    def too_large():
        raise torch.OutOfMemoryError("out of memory")

    found = take_turns({"large": too_large, "small": lambda: torch.ones(1)}, batch_size=1, rounds=2, device=CPU)
    assert list(found) == ["small"]
    assert take_turns({"large": too_large}, batch_size=1, rounds=2, device=CPU) == {}
