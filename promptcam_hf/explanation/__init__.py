"""Explanations of photographs as people look at them.

Public: `explain` in `explain.py`, which writes a contact sheet per photograph and a record of all the numbers, and
`compare` in `compare.py`, which does so for what speaks for one class and against another.
`inputs.py` finds the photographs; `drawing.py`, `comparison_sheet.py` and `text.py` draw the sheets.
"""
