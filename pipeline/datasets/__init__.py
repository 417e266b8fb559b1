"""Get a dataset: the catalogue of public ones, download and unpacking, and a synthetic one for experiments."""
