"""Vocabulary, encoder, decoder, decoding and metrics. Works on tensors only: no files, no shards."""
