"""Captions in files: read every supported format into one kind of record, tokenize them and build the vocabulary."""
