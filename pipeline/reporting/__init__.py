"""The HTML report of a run: curves, scores and example images on one self-contained page."""
