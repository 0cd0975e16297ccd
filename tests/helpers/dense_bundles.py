"""Bundles of a detector and a segmentation model made by hand: they find red, green and blue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from edgevit.bundles import store
from edgevit.bundles.build_records import BuildRecord, PrecisionRecord, RuntimeRecord
from edgevit.bundles.bundle import Bundle
from edgevit.bundles.manifest import CLASSES_FILE, REFERENCE_FILE, Manifest
from edgevit.bundles.model_record import ModelRecord
from edgevit.files import MODEL_FILE
from edgevit.images import Preprocessing
from edgevit.types import Array, OutputForm, Reference, Task, TensorSpec

HEIGHT, WIDTH, ANCHOR, STEP = 64, 96, 32, 16
LETTERBOX = Preprocessing(
    input_size=(3, HEIGHT, WIDTH), mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear", resize="fit"
)
COLORS = ("red", "green", "blue")
REGIONS = ("background", *COLORS)
_PURE = np.array([[1, -1, -1], [-1, 1, -1], [-1, -1, 1]], np.float32)[:, :, None, None]  # 1 for a pure color


def detector(folder: Path, preprocessing: Preprocessing = LETTERBOX, *, reference: Reference | None = None) -> Bundle:
    """Boxes of 32x32 at every 16th pixel of the input; the scores are the share of each pure color."""
    rows, columns = (HEIGHT - ANCHOR) // STEP + 1, (WIDTH - ANCHOR) // STEP + 1
    corners = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2) * STEP
    anchors = np.concatenate([corners, corners + ANCHOR], 1).astype(np.float32)[None]
    count = len(corners)
    text = f"""g (float[1, 3, {HEIGHT}, {WIDTH}] images) => (float[1, {count}, 4] boxes, float[1, {count}, 3] scores)
        <int64[3] flat = {{1, 3, {count}}}> {{
            pure = Conv(images, w)
            clipped = Relu(pure)
            share = AveragePool <kernel_shape = [{ANCHOR}, {ANCHOR}], strides = [{STEP}, {STEP}]> (clipped)
            rows = Reshape(share, flat)
            scores = Transpose <perm = [0, 2, 1]> (rows)
            boxes = Identity(anchors)
        }}"""
    return _bundle(
        folder,
        text,
        {"w": _PURE, "anchors": anchors},
        (TensorSpec("boxes", "float32", (1, count, 4)), TensorSpec("scores", "float32", (1, count, 3))),
        task="detection",
        form="boxes",
        classes=COLORS,
        preprocessing=preprocessing,
        reference=reference,
    )


def selecting_detector(folder: Path) -> Bundle:
    """Three boxes, whatever the photo: red, green on the same place with a lower score, and blue elsewhere."""
    boxes = np.array([[[0, 0, 32, 32], [0, 0, 32, 30], [64, 32, 96, 64]]], np.float32)
    text = f"""g (float[1, 3, {HEIGHT}, {WIDTH}] images)
        => (float[1, 3, 4] boxes, float[1, 3] scores, int32[1, 3] labels) {{
            boxes = Identity(all_boxes)
            scores = Identity(all_scores)
            labels = Identity(all_labels)
        }}"""
    return _bundle(
        folder,
        text,
        {
            "all_boxes": boxes,
            "all_scores": np.array([[0.9, 0.8, 0.7]], np.float32),
            "all_labels": np.array([[0, 1, 2]], np.int32),
        },
        (
            TensorSpec("boxes", "float32", (1, 3, 4)),
            TensorSpec("scores", "float32", (1, 3)),
            TensorSpec("labels", "int32", (1, 3)),
        ),
        task="detection",
        form="nms",
        classes=COLORS,
        preprocessing=LETTERBOX,
    )


def segmenter(folder: Path, preprocessing: Preprocessing = LETTERBOX) -> Bundle:
    """Logits of a quarter of the input's size: a constant for the background, and each pure color."""
    weights = np.concatenate([np.zeros((1, 3, 1, 1), np.float32), _PURE])
    text = f"""g (float[1, 3, {HEIGHT}, {WIDTH}] images) => (float[1, 4, {HEIGHT // 4}, {WIDTH // 4}] logits) {{
            mean = AveragePool <kernel_shape = [4, 4], strides = [4, 4]> (images)
            logits = Conv(mean, w, b)
        }}"""
    return _bundle(
        folder,
        text,
        {"w": weights, "b": np.array([0.5, 0, 0, 0], np.float32)},
        (TensorSpec("logits", "float32", (1, 4, HEIGHT // 4, WIDTH // 4)),),
        task="segmentation",
        form="logits",
        classes=REGIONS,
        preprocessing=preprocessing,
    )


def _bundle(
    folder: Path,
    text: str,
    weights: dict[str, Array],
    outputs: tuple[TensorSpec, ...],
    *,
    task: Task,
    form: OutputForm,
    classes: tuple[str, ...],
    preprocessing: Preprocessing,
    reference: Reference | None = None,
) -> Bundle:
    folder.mkdir(parents=True)
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>\n{text}')
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.save(model, folder / MODEL_FILE)
    (folder / CLASSES_FILE).write_text("\n".join(classes) + "\n", "utf-8")
    store.write_references(folder / REFERENCE_FILE, () if reference is None else (reference,))
    record = ModelRecord(
        name=task,
        source=None,
        weights="as given",
        task=task,
        output_form=form,
        preprocessing=preprocessing,
        preprocessing_source="given",
    )
    manifest = Manifest(
        model=record,
        build=BuildRecord(batch=1),
        runtime=RuntimeRecord(fmt="ort", engine_files=(MODEL_FILE,)),
        precision=PrecisionRecord(requested="fp32"),
        inputs=(TensorSpec("images", "float32", (1, 3, HEIGHT, WIDTH)),),
        outputs=outputs,
    )
    store.write_manifest(folder, manifest)
    return Bundle.open(folder)
