"""The published settings, for tests of what does not depend on the defaults."""

from typing import Any

PUBLISHED: dict[str, Any] = {
    "optimizer": "sgd",
    "learning_rate": 0.005,
    "num_prompted_layers": 3,  # all of the tiny models'
    "prompt_init": "random",
    "normalisation": "paper",
    "crops": "paper",
    "prompt_dropout": 0.1,
    "drop_path_rate": 0.1,
    "label_smoothing": 0.0,
    "blurred_negative": False,
    "mixed_precision": "no",
    "validation_share": 0.0,
    "cache_features": 0,
}
