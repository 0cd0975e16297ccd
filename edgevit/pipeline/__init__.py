"""The export pipeline: from a model to verified bundles."""
