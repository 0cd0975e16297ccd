"""Detection and segmentation: from the outputs of an engine to boxes and masks in a photo, and their quality."""
