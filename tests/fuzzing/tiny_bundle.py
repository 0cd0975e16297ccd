"""A tiny model as a bundle, as PyTorch code and as an ONNX file, which take a millisecond to run and copy."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

CLASSES = ("cat", "dog", "bird", "fish")
SIDE = 16

# The same weights as the ONNX file's, so that `verify --images --model tiny.py:build` passes.
TINY_MODEL = """
import numpy as np
import torch
from torch import nn


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4, bias=False)
        self.head = nn.Linear(8, 4)

    def forward(self, image):
        return self.head(self.conv(image).relu().mean((2, 3)))


def build():
    model = Tiny().requires_grad_(False)
    random = np.random.default_rng(0)
    for parameter in model.parameters():
        parameter.copy_(torch.from_numpy(random.standard_normal(parameter.shape).astype(np.float32)))
    return model
"""

_GRAPH = f"""<ir_version: 10, opset_import: ["" : 17]>
tiny (float[1, 3, {SIDE}, {SIDE}] image) => (float[1, 4] logits) {{
    features = Conv <strides = [4, 4]> (image, conv)
    active = Relu(features)
    pooled = GlobalAveragePool(active)
    flat = Flatten(pooled)
    logits = Gemm <transB = 1> (flat, head, bias)
}}"""


def write_tiny_bundle(folder: Path) -> None:
    """Write a bundle of ONNX Runtime, which passes `edgevit verify`."""
    import onnx
    import onnxruntime
    from onnx import numpy_helper

    from edgevit.bundles import store
    from edgevit.bundles.build_records import BuildRecord, PrecisionRecord, RuntimeRecord
    from edgevit.bundles.manifest import Manifest
    from edgevit.bundles.model_record import ModelRecord
    from edgevit.images import Preprocessing
    from edgevit.types import Reference, TensorSpec

    folder.mkdir(parents=True)
    model = onnx.parser.parse_model(_GRAPH)
    random = np.random.default_rng(0)
    for name, shape in {"conv": (8, 3, 4, 4), "head": (4, 8), "bias": (4,)}.items():
        model.graph.initializer.append(numpy_helper.from_array(random.standard_normal(shape).astype(np.float32), name))
    onnx.save(model, folder / "model.onnx")
    image = random.standard_normal((2, 3, SIDE, SIDE)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    logits = np.concatenate([session.run(None, {"image": image[row : row + 1]})[0] for row in range(2)])
    reference = Reference(kind="noise", inputs={"image": image}, outputs={"logits": logits})
    store.write_references(folder / "reference.npz", [reference])
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    store.write_manifest(
        folder,
        Manifest(
            model=ModelRecord(
                name="tiny",
                source="tiny.py:build",
                weights="as given",
                preprocessing=Preprocessing(input_size=(3, SIDE, SIDE)),
            ),
            build=BuildRecord(batch=1),
            runtime=RuntimeRecord(fmt="ort", name="ONNX Runtime", engine_files=("model.onnx",)),
            precision=PrecisionRecord(requested="fp32"),
            inputs=(TensorSpec("image", "float32", (1, 3, SIDE, SIDE)),),
            outputs=(TensorSpec("logits", "float32", (1, 4)),),
        ),
    )


def repair_hash(bundle: Path, name: str) -> None:
    """Enter the size and hash of a changed file into the manifest, as someone does who changes a bundle on purpose."""
    content = (bundle / name).read_bytes()
    manifest = json.loads((bundle / "manifest.json").read_text())
    for entry in manifest["files"]:
        if entry["path"] == name:
            entry.update(size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    (bundle / "manifest.json").write_text(json.dumps(manifest))
