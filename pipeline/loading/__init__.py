"""What training reads: the order of the epochs, the sources of images and features, and the batches."""
