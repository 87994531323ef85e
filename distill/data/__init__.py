"""Data of a run: tokens, image embeddings, samplers, and the loader that makes batches of them."""
