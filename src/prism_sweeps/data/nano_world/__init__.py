"""A procedurally drawn micro-world with exact ground truth: scenes, captions, questions, training sets, benchmarks."""
