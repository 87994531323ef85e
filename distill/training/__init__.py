"""The training run: tower, optimizer, loop, checkpoints, validation, diagnosis."""
