"""The benchmark suite: architectures, training, evaluation and results."""
