"""Prefixes of open_clip's names of models, apart from what loads models, which takes seconds to import."""

LOCAL_PREFIX, HUB_PREFIX = "local-dir:", "hf-hub:"
