"""From the official files of benchmarks to their indexes: one reader for each layout."""
