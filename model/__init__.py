"""Vocabulary, encoder, decoder, decoding and metrics. Tensors only: touches no artefact, knows no shard."""
