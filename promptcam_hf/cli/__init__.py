"""The command line. Parsing and printing only: the work is a function that Python users call too."""

from . import train, evaluate, explain, guide, share, demo  # noqa: F401, I001  (in the order in which the help lists them)
from .application import app

__all__ = ["app"]
