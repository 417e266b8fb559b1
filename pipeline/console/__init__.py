"""What the command line's options share: their types, their help and the settings they stand for."""
