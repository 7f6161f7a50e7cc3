"""Serves this model on Hugging Face Inference Endpoints, which load `EndpointHandler` from a file of this name.

A request is `{"inputs": photograph, "parameters": {...}}`, or the bytes of a photograph alone. A photograph is a file
in base64; a list of them is answered by a list. No URL and no path is ever opened. Parameters, all optional: `top_k`,
`classes`, `only`, `compare_with` and `top_traits` as for `pipeline("prompt-cam")`, and `images` (add heatmaps as PNG in
base64) and `maps` (add maps as lists of rows).

The answer has `width`, `height` and `explanations`, as `Explanations.to_json` returns them; or `error`, a line that
says what was wrong with this photograph or the parameters.
"""

from base64 import b64decode
from io import BytesIO
from typing import Any

from PIL import Image
from transformers import pipeline

OF_PIPELINE = ("top_k", "classes", "only", "compare_with", "top_traits")
OF_ANSWER = ("images", "maps")
PICTURE_SIDE = 512  # longest side of a heatmap in pixels: of the photograph's size, a few could take all memory


class EndpointHandler:
    """
    Answers requests with the model in a folder.

    Args:
        path: The folder of this file, a checkpoint.
    """

    def __init__(self, path: str = ""):
        task: Any = "prompt-cam"
        self.pipeline = pipeline(task, model=path, trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> Any:
        """Answer a request: see above."""
        if not isinstance(data, dict):
            return {"error": 'The request: expected an object, such as {"inputs": "<a photograph\'s file in base64>"}.'}
        inputs, parameters = data.get("inputs"), data.get("parameters")
        if isinstance(inputs, (list, tuple)):
            return [self._answer(photograph, parameters) for photograph in inputs]
        return self._answer(inputs, parameters)

    def _answer(self, photograph: Any, parameters: Any) -> dict[str, Any]:
        try:
            options, shown = _checked(parameters)
            heatmaps = PICTURE_SIDE if shown.get("images") else False
            result = self.pipeline(_opened(photograph), heatmaps=heatmaps, **options)
            return result.to_json(**shown)
        except (ValueError, FloatingPointError) as error:
            return {"error": " ".join(str(error).split())}


def _checked(parameters: Any) -> tuple[dict[str, Any], dict[str, bool]]:
    """Parameters of the pipeline, and of its answer as JSON."""
    given = {} if parameters is None else parameters
    if not isinstance(given, dict):
        raise ValueError('parameters: expected an object, such as {"top_k": 3}.')
    if unknown := [name for name in given if name not in OF_PIPELINE + OF_ANSWER]:
        raise ValueError(f"parameters: {unknown[0]!r} is unknown; expected {', '.join(OF_PIPELINE + OF_ANSWER)}.")
    shown = {name: given[name] for name in OF_ANSWER if given.get(name) is not None}
    for name, value in shown.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value!r}: expected true or false.")
    return {name: given[name] for name in OF_PIPELINE if given.get(name) is not None}, shown


def _opened(photograph: Any) -> Any:
    """A photograph as the pipeline takes it. What a client sends is never taken for a path or URL."""
    if isinstance(photograph, Image.Image):  # of a request that is the photograph itself
        return photograph
    if isinstance(photograph, str):
        text = photograph.partition("base64,")[2] if photograph.startswith("data:") else photograph
        try:
            photograph = b64decode("".join(text.split()), validate=True)
        except ValueError:
            raise ValueError("inputs: not base64; expected the photograph's file in base64.") from None
    if not isinstance(photograph, (bytes, bytearray)) or not photograph:
        raise ValueError("inputs: expected a photograph's file in base64, or a list of them.")
    return BytesIO(photograph)
