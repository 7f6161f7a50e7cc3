"""The browser application, `promptcam app`, and the Space that runs it.

Public: `serve` and `make_space`. The mathematics is in `modeling`; here are only the pages.
"""
