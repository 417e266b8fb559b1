"""Tests that mirror the source: ``tests/pipeline/ROOM/test_MODULE.py`` for ``pipeline/ROOM/MODULE.py``."""

import os
from pathlib import Path

ROOT = Path(__file__).parent.parent
# ``make test`` runs one test process per core, so each computes on one thread, and so does every command that a test starts.
# PyTorch reads this when it is imported; pytest imports this package first.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Threads of tests that compute on two wait in their sleep: a spinning one would take the core from the test beside it (two to four times as slow).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
