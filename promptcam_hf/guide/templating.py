"""The templates of this room. Names are escaped: they are data, not markup."""

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..data.class_names import readable
from ..messages import counted

TEMPLATES = Path(__file__).with_name("templates")


@cache
def environment() -> Environment:
    """Where the templates are, and the filters that they use."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["words"] = lambda name: readable(str(name))
    found.filters["percent"] = lambda share: "not measured" if share is None else f"{100 * share:.0f} %"
    found.filters["counted"] = counted
    return found
