"""Benchmarks: one script per question. Each prints a table and the machine it was measured on."""
