"""Bundles: the folder that a device opens, verifies, runs and measures."""
