"""Caches of image embeddings: formats and errors here; storage, sources, read and write in folders.

Flow: `sources` give rows, `write` plans the store, embeds images chunk by chunk and seals it, `read` reads it.
"""
