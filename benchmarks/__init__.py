"""The benchmark suite: architectures, training, evaluation and the record of results."""
