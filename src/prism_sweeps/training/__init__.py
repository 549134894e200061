"""One stage: batches, optimiser, checkpoints, loop."""
