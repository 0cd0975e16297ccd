"""A graph in, an artefact and an engine out; one file a runtime. Nothing here needs torch or onnx to be installed."""
