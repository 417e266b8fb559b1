"""A task that warns, in a module that worker processes import quickly."""

import logging
import warnings


def warn(number: int) -> None:
    warnings.warn(f"warning {number}\nof two lines", stacklevel=1)
    logging.getLogger("other").warning("record %d", number)
