"""Losses between text features and frozen image embeddings, computed in blocks of logits."""
