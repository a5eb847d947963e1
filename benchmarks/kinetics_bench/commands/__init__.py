"""The verbs of run-benchmark: each module has a parser, and what it does with the arguments."""
