"""Sharing models: the Hub, the model card, and checkpoints of the original code converted."""
