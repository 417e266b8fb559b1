"""Tests that mirror the source: ``tests/pipeline/ROOM/test_MODULE.py`` for ``pipeline/ROOM/MODULE.py``."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
