"""Turn images and captions into a dataset of WebDataset shards, and read its samples back."""
