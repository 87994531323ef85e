"""Reads caches: arrays with checksums, rows, verification."""
