"""TensorRT: build on the device that runs the engine."""
