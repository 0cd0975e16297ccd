"""Find nodes that a runtime does not support or runs slowly."""
