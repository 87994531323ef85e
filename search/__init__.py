"""Nearest neighbours of query embeddings among the image embeddings of a cache."""
