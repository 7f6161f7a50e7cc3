"""Training prompts: the options, the augmented views, the feature cache, the loop and its saved states."""
