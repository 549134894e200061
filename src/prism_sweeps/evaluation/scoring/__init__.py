"""What one answer earns, and what is reported besides, for each kind of benchmark."""
