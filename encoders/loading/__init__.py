"""Models of others: fetched from hubs, read from folders as data alone, and refused in one sentence."""
