"""Measuring a model: accuracy and calibration, confusions, and whether its maps show the traits.

Public: `evaluate` in `evaluate.py`, which writes a report. `prediction.py` and `report.py` measure and report the
predictions, `faithfulness.py`, `trait_metrics.py` and `keypoints.py` the maps of any `Explainer` (`explainers.py`),
`randomisation.py` those of a Prompt-CAM.
"""
