"""Fixtures: tiny language models and the settings of a run with one."""

from support.tiny_lms import lm_settings, lms  # noqa: F401 (fixtures)
