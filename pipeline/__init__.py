"""The pipeline: one package per subject. A command is a function that takes paths and settings and returns a result."""
