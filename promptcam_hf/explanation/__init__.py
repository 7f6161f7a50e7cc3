"""Explanations of photographs as people look at them.

Public: `explain` in `explain.py`, which writes a contact sheet per photograph and a record of all the numbers.
`inputs.py` finds the photographs; `drawing.py` and `text.py` draw the sheets.
"""
