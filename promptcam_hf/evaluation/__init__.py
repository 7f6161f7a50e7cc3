"""Measuring a model: accuracy, calibration, confusions, and whether its maps show the traits."""
