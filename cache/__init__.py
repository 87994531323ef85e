"""The cache: where images and captions come from, and the Zarr store of their embeddings.

Flow: `manifest` reads a source, `plan` lays out the store, `embed` fills it chunk by chunk, `store` reads it.
"""
