"""One frozen dataclass of settings for each command."""
