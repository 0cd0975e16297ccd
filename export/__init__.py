"""A module in, a clean typed ONNX graph out."""
