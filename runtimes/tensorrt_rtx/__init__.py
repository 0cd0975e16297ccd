"""TensorRT-RTX: ahead-of-time engines, no GPU needed to build."""
