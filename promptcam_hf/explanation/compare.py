"""Compare two classes on photographs with a checkpoint: `promptcam compare`, as a Python function."""

import os
from collections.abc import Sequence
from typing import Any

from .comparison_sheet import comparison_sheet
from .explain import ExplainResult, Output, check_options, write_sheets
from .predictor import NamesTraits


def compare(
    photographs: str | os.PathLike | Sequence[str | os.PathLike],
    model: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    a: str | int | None = None,
    b: str | int = "auto",
    top_traits: int = 4,
    traits: NamesTraits | None = None,
    batch_size: int = 32,
    overwrite: bool = False,
    progress: bool = True,
    **predictor_options: Any,
) -> ExplainResult:
    """
    Show what, on photographs, speaks for one class and against another. Writes a sheet per photograph (see
    `comparison_sheet`) and `explanations.jsonl`, which is as `explain` writes it and has the key `comparison` in each
    explanation (see `PromptCamPipeline`). A photograph that cannot be read does not stop the others.

    Args:
        photographs: As for `explain`.
        model: Checkpoint folder or Hub id.
        output_dir: The folder to write to. It is created if needed.
        a: Name or label of the class to explain. Default: on each photograph the most probable one.
        b: Name or label of the class to compare it with; `"auto"`: its runner-up, the other class that scores
            highest. The runner-up also takes the place of b on photographs on which a and b are the same.
        top_traits: How many heads to show, those that speak most for a and against b.
        traits: What names the places that speak most for a, such as `TraitNames`: `trait` in `explanations.jsonl`.
        batch_size, overwrite, progress, predictor_options: As for `explain`.

    Returns:
        What was written, which photographs could not be read, and how many were compared with which b.

    Raises:
        ValueError, FloatingPointError, OSError: As `explain`.
    """
    check_options(None, None, top_traits, batch_size)
    predictor_options |= {"explained": 1 if a is None else [a], "compare_with": b, "maps": top_traits, "traits": traits}
    output = Output(comparison_sheet, top_traits, work="comparing")
    return write_sheets(photographs, model, output_dir, output, predictor_options, batch_size, overwrite, progress)
