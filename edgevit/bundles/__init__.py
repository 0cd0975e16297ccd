"""Bundles: the folder a device opens, verifies and measures."""
