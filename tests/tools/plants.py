"""Plant faults in exported models: `python -m tests.tools.plants [--count 20 | --table]`.

Without options, each of `--count` faults is planted at a random operator of a random model, and the explanation is
asked for the module. With `--table` the faults that parity catches in each model are counted, for docs/parity.md. timm,
torchvision and segmentation_models_pytorch are needed; weights are random and keep activations alive.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from edgevit.export import passes
from edgevit.export.capture import capture
from edgevit.export.check import check
from edgevit.export.graph import OnnxGraph
from edgevit.models.initialization import randomize
from edgevit.models.loading import LoadedModel, from_module
from edgevit.models.reference import compute_references
from edgevit.pipeline.evaluators import graph_evaluator
from edgevit.pipeline.explain.explanation import Explanation
from edgevit.pipeline.explain.search import Failure, explain_failure
from edgevit.pipeline.explain.stages import GRAPH, Stage
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.output_parity import OutputParity
from edgevit.runtimes.parity import compare
from edgevit.types import Reference
from tests.tools.breadth_models import import_timm, segmenter
from tests.tools.faults import FAULTS, Plant, find_plants, plant, scale_weight

SEED = 0
ROWS = 2  # of photos; one of noise
SAMPLED = 4  # operators for each fault of the table


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A model, its graph for a format and PyTorch's outputs."""

    model: LoadedModel
    graph: OnnxGraph
    references: tuple[Reference, ...]

    def failures(self, graph: OnnxGraph) -> list[OutputParity]:
        """Return the failed comparisons of a graph with PyTorch."""
        report = compare("graph", graph_evaluator(graph), self.references, precision="fp32")
        return [result for result in report.results if not result.passed]

    @property
    def allowed_of_std(self) -> float:
        report = compare("graph", graph_evaluator(self.graph), self.references, precision="fp32")
        return max(result.allowed_error_of_std or 0.0 for result in report.results)


def timm_model(name: str, size: int, **options: Any) -> Callable[[], tuple[torch.nn.Module, int]]:
    return lambda: (import_timm().create_model(name, pretrained=False, **options), size)


def segmentation_model(name: str) -> Callable[[], tuple[torch.nn.Module, int]]:
    return lambda: (segmenter(name), 64)


# Third-party architectures of ten kinds, each with the side of its input.
MODELS: Mapping[str, Callable[[], tuple[torch.nn.Module, int]]] = {
    "resnet18": timm_model("resnet18", 96),
    "convnext_atto": timm_model("convnext_atto", 96),
    "vit_tiny_patch16_224": timm_model("vit_tiny_patch16_224", 96, img_size=96),
    "swin_tiny_patch4_window7_224": timm_model("swin_tiny_patch4_window7_224", 112, img_size=112, depths=(1, 1, 2, 1)),
    "efficientnet_b0": timm_model("efficientnet_b0", 96),
    "mobilenetv4_conv_small": timm_model("mobilenetv4_conv_small", 96),
    "mobilevit_xxs": timm_model("mobilevit_xxs", 128),
    "mixer_s32_224": timm_model("mixer_s32_224", 224),
    "UPerNet of smp": segmentation_model("UPerNet"),
    "Unet of smp": segmentation_model("Unet"),
}


def export(name: str) -> Exported:
    module, size = MODELS[name]()
    module.eval()
    randomize(module, seed=SEED)
    return exported_from(module, torch.zeros(1, 3, size, size))


def exported_from(module: torch.nn.Module, example: torch.Tensor) -> Exported:
    """Export a module as for ONNX Runtime."""
    model = from_module(module, example_input=example)
    captured = capture(model.module, model.example, input_names=model.input_names).graph
    graph = check(passes.specialize(passes.optimize(captured), "ort"))
    references = compute_references(model, [spec.name for spec in graph.outputs])
    fewer = tuple(_first_rows(each, ROWS if each.kind == "photos" else 1) for each in references)
    return Exported(model=model, graph=graph, references=fewer)


def _first_rows(reference: Reference, rows: int) -> Reference:
    return replace(
        reference,
        inputs={name: array[:rows] for name, array in reference.inputs.items()},
        outputs={name: array[:rows] for name, array in reference.outputs.items()},
    )


def explain(exported: Exported, graph: OnnxGraph, *, fmt: str = GRAPH, folder: Path) -> Explanation | None:
    """Return the explanation of a wrong graph; None if parity does not fail."""
    failures = exported.failures(graph)
    if not failures:
        return None
    reference = next(each for each in exported.references if each.kind == failures[0].kind)
    stage = Stage(name="planted", fmt=fmt, precision="fp32", graph=graph, options=BuildOptions())
    return explain_failure(exported.model, Failure(stage=stage, result=failures[0], reference=reference), folder=folder)


def is_named(planted: Plant, explanation: Explanation) -> bool:
    """Whether the explanation names the module of the fault."""
    return explanation.module == planted.module


def random_plants(graph: OnnxGraph, generator: random.Random, done: Counter[str]) -> Iterator[Plant]:
    """Yield plants without end: the fault that was tried least of those that the graph allows, at a random operator."""
    plants = find_plants(graph)
    faults = sorted({each.fault for each in plants})
    while True:
        least = min(done[fault] for fault in faults)
        fault = generator.choice([fault for fault in faults if done[fault] == least])
        done[fault] += 1
        yield generator.choice([each for each in plants if each.fault == fault])


def count_named(count: int, fmt: str) -> None:
    """Plant `count` faults and print whether the explanation names the module of each."""
    generator = random.Random(SEED)
    named = reproduced = done = 0
    tried: Counter[str] = Counter()
    names = list(MODELS)
    for index, name in enumerate(names):
        exported = export(name)
        wanted = count // len(names) + (index < count % len(names))
        for planted in random_plants(exported.graph, generator, tried):
            if not wanted:
                break
            start = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                found = explain(exported, plant(exported.graph, planted), fmt=fmt, folder=Path(folder))
            if found is None:
                _say(f"not caught by parity: {name}, {planted.fault} at {planted.node}")
                continue
            wanted, done = wanted - 1, done + 1
            right = is_named(planted, found)
            named += right
            reproduced += found.reproducer is not None and found.reproducer.fails
            _say(
                f"{'right' if right else 'WRONG'}: {name}, {planted.fault} at {planted.node}: "
                f"{found.sentence} ({time.monotonic() - start:.1f} s)"
            )
    _say(f"{named} of {done} modules named, {reproduced} of {done} saved parts fail by themselves")


def table() -> None:
    """Print the table of docs/parity.md."""
    generator = random.Random(SEED)
    _say(f"| model | allowed error | {' | '.join(FAULTS)} | smallest scaling |")
    _say("|---|--:|" + "--:|" * (len(FAULTS) + 1))
    for name in MODELS:
        exported = export(name)
        plants = find_plants(exported.graph)
        cells = [_caught(exported, [each for each in plants if each.fault == fault], generator) for fault in FAULTS]
        layers = [each for each in plants if each.fault == "a sign"]
        sampled = generator.sample(layers, min(SAMPLED, len(layers)))
        smallest = max(_smallest_scaling(exported, each) for each in sampled)
        _say(f"| {name} | {exported.allowed_of_std:.0e} | {' | '.join(cells)} | {smallest:.0e} |")


def _caught(exported: Exported, plants: Sequence[Plant], generator: random.Random) -> str:
    sampled = generator.sample(list(plants), min(SAMPLED, len(plants)))
    caught = sum(bool(exported.failures(plant(exported.graph, each))) for each in sampled)
    return f"{caught} of {len(sampled)}" if sampled else ""


def _smallest_scaling(exported: Exported, layer: Plant) -> float:
    """Return the smallest relative change of one layer's weight that fails; 1 if none of those tried does."""
    for change in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1):
        if exported.failures(plant(exported.graph, layer, scale_weight(1 + change))):
            return change
    return 1.0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20, metavar="N", help="number of faults (default: 20)")
    parser.add_argument("--fmt", default=GRAPH, help="runtime that runs the wrong graph (default: the graph itself)")
    parser.add_argument("--table", action="store_true", help="print which faults parity catches in each model")
    arguments = parser.parse_args()
    if arguments.table:
        table()
    else:
        count_named(arguments.count, arguments.fmt)


if __name__ == "__main__":
    main()
