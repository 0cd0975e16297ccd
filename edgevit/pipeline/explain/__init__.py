"""Find the first PyTorch module that a graph or an engine computes wrongly."""
