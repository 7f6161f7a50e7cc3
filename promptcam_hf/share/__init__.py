"""Sharing models: pushing to the Hub, model cards, conversion of checkpoints of the original code, and export to ONNX.

Public: `push`, `check_can_push`, `check_checkpoint` (hub), `write_model_card` (model_card), `convert_checkpoint`
(conversion), `export_onnx` (export).
"""
