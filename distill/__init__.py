"""Distillation: batches from a cache, losses, the training loop, checkpoints."""
