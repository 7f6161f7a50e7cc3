"""The browser application, `promptcam app`, and the Space that runs it.

Public: `serve_app`, `make_space` and `push_space`. The mathematics is in `modeling`; here are only the pages.
"""
