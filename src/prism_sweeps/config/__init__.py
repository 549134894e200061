"""The typed design space: schema, composition, cross-axis checks, fingerprints. No torch."""
