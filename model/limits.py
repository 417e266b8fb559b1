"""The valid values of what runs and features record about a model: each limit once, for options and for files of unknown origin.

Imports nothing, so that ``--help`` answers at once.
"""

# The largest value of each of a captioner's sizes; the smallest is 1. A model of the largest ones would not fit into any machine's memory, but
# files are checked against these before anything is built.
SIZE_LIMITS = {
    "feature_dim": 1 << 20,
    "vocabulary_size": 1 << 24,
    "embedding_dim": 1 << 14,
    "hidden_dim": 1 << 14,
    "layers": 32,
    "heads": 64,
    "encoder_layers": 32,
}
# The sides of a resized image, in pixels
MIN_SIDE, MAX_SIDE = 16, 4096
RESIZE_MODES = ("squash", "shortest", "pad", "none")
FILTERS = ("lanczos", "bicubic", "bilinear", "box")


def check_type(name: str, value: object, kind: type) -> None:
    """Check the type of a value; a bool is not an int, and an int is accepted for a float.

    Raises:
        TypeError: It has another type; names ``name``.
    """
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise TypeError(f"{name} is {value!r:.100}, it must be of type {kind.__name__}")
