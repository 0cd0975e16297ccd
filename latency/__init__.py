"""An engine in, numbers that a stranger can reproduce out. Nothing here needs torch or onnx to be installed."""
