"""Detectors and segmenters: heads on the feature maps of the hierarchical backbones."""
