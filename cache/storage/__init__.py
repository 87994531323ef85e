"""Stores of a cache's bytes: local folders, object stores, HDF5, memory maps."""
