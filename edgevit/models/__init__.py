"""The reference models, by name."""
