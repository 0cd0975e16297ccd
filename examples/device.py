"""Open a bundle on a device that has neither PyTorch nor ONNX: verify it, then run it on an image.

python examples/device.py BUNDLE IMAGE
"""

from __future__ import annotations

import sys
from pathlib import Path

import edgevit
from edgevit.bundles.bundle import Bundle
from edgevit.bundles.verify import verify
from edgevit.images import read_batch

bundle = Bundle.open(sys.argv[1])  # checks the hash of every file
verify(bundle).require()  # compares the engine with PyTorch's outputs in the bundle; raises ParityError

with edgevit.load(bundle) as engine:
    images = read_batch([Path(sys.argv[2])], bundle.preprocessing)
    (scores,) = engine.run({engine.inputs[0].name: images}).values()  # (1, classes)
best = scores[0].argsort()[::-1][:3]
for index in best:
    print(f"{scores[0][index]:8.3f}  {bundle.classes[index] if bundle.classes else index}")
