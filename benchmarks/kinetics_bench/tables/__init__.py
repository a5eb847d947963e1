"""The paper's tables as experiments: what to train for each cell, the runs, and the page."""
