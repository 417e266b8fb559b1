"""Score captions against their references and write the scores to a file."""
