"""Distillation: batches from a cache, losses, the training loop, checkpoints, and the export of a run."""
