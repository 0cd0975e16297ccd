"""Find nodes that a runtime does not support, computes wrongly or runs slowly, before an engine is built."""
