"""Training prompts: the options, the augmented views, the feature cache, the loop and its saved states.

Public: `PromptCamTrainer` (trainer.py), `TrainingOptions` and `load_recipe` (options.py). `promptcam_hf.train`, which
also writes the model card and pushes to the Hub, is in share/run.py.
"""
