"""Export a registered model for ONNX Runtime and classify a photo with it.

    python examples/quickstart.py [OUT]

The model is a small ShiftViT trained on CIFAR-10 that comes with the package: nothing is downloaded.
"""

from __future__ import annotations

import sys

import edgevit
from edgevit.images import read_batch, sample_images

out = sys.argv[1] if len(sys.argv) > 1 else "bundles"
bundle = edgevit.export("shiftvit_cifar10", fmt="ort", out=out)
print(f"exported {bundle.path}")

photo = next(path for path in sample_images() if path.stem == "chelsea")
with edgevit.load(bundle) as engine:
    images = read_batch([photo], bundle.preprocessing)  # (1, 3, 32, 32)
    logits = engine.run({engine.inputs[0].name: images})["logits"]  # (1, 10)
classes = bundle.classes or ()
print(f"{photo.name}: {classes[logits[0].argmax()]}")
