"""Latency measurement. Needs neither torch nor onnx."""
