"""Photographs in, predictions and explanations out.

Public: `PromptCamPredictor` (predictor.py), which all commands use; `predict` (predict.py), which writes a table;
`explain` (explain.py), a contact sheet per photograph, a record, maps as files (saving.py), and one page for all
(page.py); `compare` (compare.py), the same for what speaks for one class and against another; `explain_shards` and
`load_explanations` (shards.py), for millions of photographs; `draw_sheets` (sheets.py) of some of them.
`inputs.py` and `sources.py` find the photographs; `answers.py` decides what to answer; `drawing.py`,
`comparison_sheet.py` and `text.py` draw.
"""
