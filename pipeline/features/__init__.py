"""Compute the image features of a split once and store them in an HDF5 file, or import existing ones."""
