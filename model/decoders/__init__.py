"""Decoders by name: one module each, listed in :data:`model.decoder_config.DECODERS`."""
