"""Measure the engines of edgevit against those that a user reaches without it: `make bench`."""
