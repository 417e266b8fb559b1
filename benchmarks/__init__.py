"""Measurements: one script per question, each printing a table that says on what machine it was made."""
