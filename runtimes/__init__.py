"""Inference runtimes: build engines from ONNX files and run them. Needs neither torch nor onnx."""
