"""Batches of a run: tokens, embeddings, samplers, prefetching."""
