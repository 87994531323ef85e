"""Fixtures of commands."""

from support.tiny_lms import lm_settings, lms  # noqa: F401 (fixtures)
