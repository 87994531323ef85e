"""Search page and JSON API over HTTP."""
