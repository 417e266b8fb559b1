"""Decode images and draw figures."""
