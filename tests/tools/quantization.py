"""Measure the accuracy of int8 weight ranges on this processor: `python -m tests.tools.quantization [--images N]`.

Quantizes the trained ShiftViT for ONNX Runtime and OpenVINO with 256 calibration images, with safe and with full
weights, and prints one row for each engine and for the graph as written. `--saturate` adds the graph with sums that
saturate as on x86 processors without VNNI, which is slow. A table of docs/quantization.md comes from here.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import onnxruntime
import torch

from edgevit import cpu, create_model
from edgevit.export import passes
from edgevit.export.capture import capture
from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.export.quantization.calibration import collect_ranges
from edgevit.export.quantization.int8 import find_layers, quantize
from edgevit.formats import Int8Range, get_format
from edgevit.images import IMAGENET_MEAN, IMAGENET_STD
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.onnxruntime import OnnxRuntimeEngine
from edgevit.runtimes.registry import get_runtime
from edgevit.types import Array, Run
from tests.helpers.cifar10 import DATA, Cifar10, load_cifar10
from tests.helpers.quantization import load, snr_db
from tests.helpers.saturation import emulate_saturation

CALIBRATION_IMAGES = 256
BATCH = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000, metavar="N", help="test images (default: 2000)")
    parser.add_argument("--saturate", action="store_true", help="also emulate x86 processors without VNNI")
    arguments = parser.parse_args()
    images = arguments.images
    _print(f"instructions: {cpu.int8_instructions(cpu.cpu_flags())}")
    _print(f"{'format':10}{'weights':10}{'run by':28}{'top-1 %':>8}{'same %':>8}{'SNR dB':>8}")
    dataset = load_cifar10()
    dataset = Cifar10(dataset.inputs[:images], dataset.labels[:images], dataset.logits[:images])
    captured = capture(
        create_model("shiftvit_cifar10"),
        (torch.from_numpy(dataset.inputs[:2]),),
        input_names=["x"],
        output_names=["y"],
        dynamic_batch=True,
    )
    optimized = passes.optimize(captured.graph)
    for fmt in ("ort", "openvino"):
        graph = check(passes.specialize(optimized, fmt, precision="int8"))
        report(fmt, "fp32", "the graph", load(graph), dataset)
        for weight_range in get_args(Int8Range):
            quantized = check(quantize_all(graph, fmt, weight_range))
            report(fmt, weight_range, "the graph", load(quantized), dataset)
            if arguments.saturate:
                report(fmt, weight_range, "the graph, saturating", load(check(emulate_saturation(quantized))), dataset)
            with tempfile.TemporaryDirectory() as folder:
                report(fmt, weight_range, "the engine", build(quantized, fmt, Path(folder)), dataset)


def quantize_all(graph: OnnxGraph, fmt: str, weight_range: Int8Range) -> OnnxGraph:
    layers = [layer for layer in find_layers(graph) if not layer.skip_reason]
    names = {name for layer in layers for name in layer.tensors}
    ranges = collect_ranges(graph, [{"x": calibration_images()}], load=load, names=names)
    scheme = replace(get_format(fmt).require_int8(), weight_range=weight_range)
    return quantize(graph, [layer.name for layer in layers], ranges, scheme=scheme)


def calibration_images() -> Array:
    with np.load(DATA / "cifar10_sample.npz") as sample:
        pixels = sample["calibration_images"][:CALIBRATION_IMAGES].astype(np.float32) / 255
    normalized = (pixels - np.asarray(IMAGENET_MEAN, np.float32)) / np.asarray(IMAGENET_STD, np.float32)
    return np.ascontiguousarray(normalized.transpose(0, 3, 1, 2))


def build(graph: OnnxGraph, fmt: str, folder: Path) -> Run:
    options = BuildOptions(precision="int8")
    if fmt == "ort":
        return OnnxRuntimeEngine(onnxruntime, graph.to_bytes(), options).run
    graph.save(folder / "model.onnx")
    runtime = get_runtime(fmt)
    return runtime.open(runtime.build(folder / "model.onnx", folder, options).path, options).run


def report(fmt: str, weights: str, run_by: str, run: Run, dataset: Cifar10) -> None:
    starts = range(0, len(dataset.inputs), BATCH)
    logits = np.concatenate([run({"x": dataset.inputs[start : start + BATCH]})["y"] for start in starts])
    classes, fp32_classes = logits.argmax(1), dataset.logits.argmax(1)
    top1, same = 100 * (classes == dataset.labels).mean(), 100 * (classes == fp32_classes).mean()
    snr = snr_db(dataset.logits, logits)
    _print(f"{fmt:10}{weights:10}{run_by:28}{top1:8.2f}{same:8.2f}{snr:8.1f}")


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
