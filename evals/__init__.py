"""Evaluation: retrieval and zero-shot classification on embeddings."""
