"""The commands, one module each: its options, the call of its stage, and what it prints."""
