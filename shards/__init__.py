"""The on-disk formats: shard datasets, feature files, and how both are written safely. Knows no torch."""
