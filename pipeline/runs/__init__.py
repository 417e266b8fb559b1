"""A training run on disk: its configuration, recipes, directory and checkpoints."""
