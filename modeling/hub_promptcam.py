"""What a checkpoint that is pushed to the Hub says about its backbone: the Hub id, if it has one, and no local path."""

import json
import os
import re
from pathlib import Path
from typing import Any

from .open_clip_promptcam import HUB_PREFIX


class PushedWithoutLocalPaths:
    """What transformers pushes to the Hub names the backbone by its Hub id, or not at all: local paths are private, and
    mean nothing elsewhere. Checkpoints on disk keep the path."""

    def _upload_modified_files(self, working_dir, *args, **kwargs):
        path = Path(working_dir, "config.json")
        config = json.loads(path.read_text(encoding="utf-8"))
        public = without_local_paths(config)
        if config.get("prompts_only") and public.get("backbone") is None:
            raise ValueError(
                f"prompts_only=True: others do not have the folder of the backbone, {config.get('backbone')!r}. Push "
                "the whole model, saved with prompts_only=False, or use a backbone from the Hub."
            )
        path.write_text(json.dumps(public, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        upload: Any = super()
        return upload._upload_modified_files(working_dir, *args, **kwargs)


def without_local_paths(config: dict[str, Any]) -> dict[str, Any]:
    """A copy of the dictionary of a configuration in which nothing names a backbone but its Hub id, if it has one."""
    origin = config.get("backbone") if is_on_hub(config.get("backbone"), config.get("backbone_revision")) else None

    def public(values: dict[str, Any]) -> dict[str, Any]:
        private = {"backbone", "_name_or_path"}
        return {name: value for name, value in values.items() if name not in private or value in (None, "", origin)}

    return public(config) | {"backbone_config": public(config.get("backbone_config") or {})}


def is_on_hub(backbone: Any, revision: str | None) -> bool:
    """Whether a backbone comes from the Hub. A folder has no commit, and may have a name like `namespace/name`."""
    is_id = isinstance(backbone, str) and is_hub_id(backbone.removeprefix(HUB_PREFIX))
    return is_id and (revision is not None or not os.path.exists(backbone))


def is_hub_id(name: str) -> bool:
    """Whether a name could be an id on the Hub, `namespace/name`."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None
