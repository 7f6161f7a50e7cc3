"""Explanations of photographs as people look at them.

Public: `explain` in `explain.py`, which writes a contact sheet per photograph and a record of all the numbers.
`drawing.py` draws the sheets.
"""
