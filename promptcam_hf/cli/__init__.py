"""The command line. Parsing and printing only: the work is a function that Python users call too."""

# In the order in which the help lists them
from . import train, evaluate, predict, explain, compare, guide, demo, serve, share, doctor  # noqa: F401, I001
from .application import app

__all__ = ["app"]
