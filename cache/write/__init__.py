"""Writes caches: plan, embed, seal, append, merge, import, convert."""
