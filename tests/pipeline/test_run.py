"""The whole pipeline: outputs of the trained model's bundles agree with PyTorch and the authors' code."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

import edgevit
from edgevit.bundles.bundle import Bundle
from edgevit.cli.main import main
from edgevit.errors import ExportError, MissingError, ParityError, UsageError
from edgevit.models.description import ModelDescription
from edgevit.models.loading import from_module
from edgevit.pipeline import bundle_writer
from edgevit.pipeline import run as pipeline
from edgevit.pipeline.config import ExportConfig
from edgevit.runtimes.base import Artifact, BuildOptions
from edgevit.runtimes.onnxruntime import OnnxRuntime
from edgevit.runtimes.pytorch import TorchEngine
from edgevit.types import OutputForm, Task, TensorSpec
from tests.helpers.cifar10 import Cifar10
from tests.helpers.graphs import parse

PHOTOS = Path(edgevit.__file__).parent / "data" / "photos"


def test_pytorch_has_the_recorded_accuracy(cifar10: Cifar10) -> None:
    with torch.no_grad():
        logits = edgevit.create_model("shiftvit_cifar10")(torch.from_numpy(cifar10.inputs)).numpy()
    assert abs(logits - cifar10.logits).max() <= 1e-4 * cifar10.logits.std()
    assert (logits.argmax(1) == cifar10.labels).mean() == 0.7625


def test_every_engine_has_the_recorded_accuracy(bundle: Bundle, cifar10: Cifar10) -> None:
    with edgevit.load(bundle) as engine:
        name = engine.inputs[0].name
        logits = np.concatenate([engine.run({name: batch})["logits"] for batch in np.split(cifar10.inputs, 125)])
    assert abs(logits - cifar10.logits).max() <= 1e-4 * cifar10.logits.std()
    assert (logits.argmax(1) == cifar10.labels).mean() == 0.7625


class Smaller(nn.Module):
    """Reduces the image with antialiasing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)


@pytest.mark.parametrize("verify", [True, False])
def test_a_form_that_the_runtime_computes_wrongly_is_refused_before_the_build(verify: bool, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot run on OpenVINO: /Resize: .*antialias.* wrongly; resize with"):
        edgevit.export(
            Smaller(), fmt="openvino", example_input=torch.zeros(1, 3, 8, 8), verify=verify, out=tmp_path / "out"
        )
    assert list((tmp_path / "out").iterdir()) == []


class Spectrum(nn.Module):
    """A Fourier filter, an average pooling that counts its padding, and circular padding."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        filtered = torch.fft.irfft2(torch.fft.rfft2(x) * 0.5 + 1, s=(9, 8))
        pooled = nn.functional.avg_pool2d(filtered, 3, 2, 1, ceil_mode=True)
        return nn.functional.pad(pooled, (1, 2, 1, 1), mode="circular")


def test_forms_that_openvino_miscomputes_are_written_in_others(tmp_path: Path) -> None:
    """Parity with PyTorch is checked by the export itself."""
    bundle = edgevit.export(Spectrum(), fmt="openvino", example_input=torch.zeros(1, 3, 9, 8), out=tmp_path)
    assert bundle.manifest.to_json()["parity"]["passed"] is True


def test_the_manifest_describes_the_bundle(bundle: Bundle, fmt: str) -> None:
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    assert manifest["schema_version"] == 2
    assert manifest["model"]["name"] == "shiftvit_cifar10"
    assert len(manifest["model"]["weights_sha256"]) == 64
    assert manifest["model"]["preprocessing"]["crop_pct"] == 1.0
    assert manifest["precision"]["asked"] == manifest["precision"]["found"] == "fp32"
    assert manifest["runtime"]["fmt"] == fmt
    assert manifest["parity"]["passed"] is True
    assert {entry["path"] for entry in manifest["files"]} == {
        path.name for path in bundle.path.iterdir() if path.name != "manifest.json"
    }


def test_the_graph_has_slices_and_pads_and_no_unwanted_operators(bundle: Bundle) -> None:
    from edgevit.export.graph import OnnxGraph
    from tests.helpers.graphs import unwanted_operators

    graph = OnnxGraph.load(bundle.model_path)
    blocks = 9
    assert graph.operators["Pad"] == 4 * blocks
    assert graph.operators["Slice"] == 5 * blocks
    assert unwanted_operators(graph) == {}
    convolutions = [node for node in graph.model.graph if node.op_type == "Conv"]
    assert all(node.attributes.get_int("group", 1) == 1 for node in convolutions)
    assert "layers.2.blocks.3.mlp.fc1/Conv" in {node.name for node in convolutions}


class TwoHeads(nn.Module):
    """Two inputs and two outputs, none of them an image."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both = torch.cat((left, right), 1)
        return self.linear(both), both.relu()


def test_export_is_a_function_and_a_package() -> None:
    package = importlib.import_module("edgevit.export.graph")
    assert callable(edgevit.export)
    assert sys.modules["edgevit.export"].graph is package


@pytest.mark.parametrize("dynamic", [None, (1, 2, 4)])
def test_a_users_module(fmt: str, dynamic: tuple[int, int, int] | None, tmp_path: Path) -> None:
    module = TwoHeads()
    example = (torch.rand(1, 2), torch.rand(1, 4))
    made = edgevit.export(module, fmt=fmt, example_input=example, out=tmp_path, dynamic_batch=dynamic)
    assert made.path == tmp_path / f"twoheads-fp32-{fmt}"
    with edgevit.load(made) as engine:
        outputs = engine.run({"left": example[0].numpy(), "right": example[1].numpy()})
    want = module(*example)
    assert list(outputs) == ["output_0", "output_1"]
    for got, expected in zip(outputs.values(), want, strict=True):
        assert np.allclose(got, expected.detach().numpy(), atol=1e-6)


def test_a_static_batch(fmt: str, tmp_path: Path) -> None:
    made = edgevit.export("shiftvit_cifar10", fmt=fmt, out=tmp_path, batch=2)
    with edgevit.load(made) as engine:
        assert engine.inputs[0].shape == (2, 3, 32, 32)
        with pytest.raises(UsageError, match="not the shape"):
            engine.run({"images": np.zeros((1, 3, 32, 32), np.float32)})


def test_outputs_belong_to_the_caller(bundle: Bundle) -> None:
    with edgevit.load(bundle) as engine:
        feeds = {"images": np.random.default_rng(0).random((1, 3, 32, 32), np.float32)}
        first = engine.run(feeds)["logits"]
        kept = first.copy()
        engine.run({"images": -feeds["images"]})
    assert np.array_equal(first, kept)


def test_openvino_caches_the_compiled_model(shared_bundle: Callable[[str], Bundle], tmp_path: Path) -> None:
    feeds = {"images": np.random.default_rng(0).random((1, 3, 32, 32), np.float32)}
    answers = []
    for _ in range(2):
        with edgevit.load(shared_bundle("openvino"), cache_dir=tmp_path) as engine:
            answers.append(engine.run(feeds)["logits"])
    assert list(tmp_path.glob("*/*.blob"))
    assert np.array_equal(answers[0], answers[1])


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"image": np.zeros((1, 3, 32, 32), np.float32)}, "takes the inputs"),
        ({"images": np.zeros((1, 3, 32, 32))}, "astype"),
        ({"images": np.zeros((1, 3, 32, 31), np.float32)}, "not the shape"),
        ({"images": np.zeros((17, 3, 32, 32), np.float32)}, "batches of 1:2:16"),
        ({"images": [[0.0]]}, "not list"),
        ({0: np.zeros(1), "images": np.zeros(1)}, "takes the inputs"),
        (np.zeros((1, 3, 32, 32), np.float32), "takes a dict of arrays, .* not ndarray"),
    ],
)
def test_an_engine_rejects_wrong_input(bundle: Bundle, feeds: Any, message: str) -> None:
    with edgevit.load(bundle) as engine, pytest.raises(UsageError, match=message):
        engine.run(feeds)


def test_a_closed_engine_raises(bundle: Bundle) -> None:
    with edgevit.load(bundle) as engine:
        pass
    with pytest.raises(UsageError, match="the engine is closed"):
        engine.run({"images": np.zeros((1, 3, 32, 32), np.float32)})


def test_an_engine_runs_from_several_threads(bundle: Bundle) -> None:
    """OpenVINO's infer request raises while another thread uses it."""
    images = np.random.default_rng(0).random((8, 1, 3, 32, 32), np.float32)
    with edgevit.load(bundle, threads=1) as engine:

        def answer(index: int) -> np.ndarray:
            return engine.run({"images": images[index % 8]})["logits"]

        expected = [answer(index) for index in range(8)]
        with ThreadPoolExecutor(8) as pool:
            for index, found in enumerate(pool.map(answer, range(64))):
                assert np.array_equal(found, expected[index % 8])


def test_an_engine_reports_its_precision_after_chdir(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle.path.parent)
    with edgevit.load(bundle.path.name) as engine:
        monkeypatch.chdir(tmp_path)
        assert engine.executed_precision().actual == "fp32"


def test_a_folder_whose_name_is_not_utf_8(bundle: Bundle, tmp_path: Path) -> None:
    strange = shutil.copytree(bundle.path, tmp_path / "strange-\udcff")
    with edgevit.load(strange) as engine:
        assert engine.outputs[0].name == "logits"


class Wrong(OnnxRuntime):
    """A runtime that builds wrong engines: it scales the bias of the last layer."""

    def build(self, model: Path, folder: Path, options: BuildOptions) -> Artifact:
        import onnx

        artifact = super().build(model, folder, options)
        graph = onnx.load(model)
        bias = next(tensor for tensor in graph.graph.initializer if tensor.dims == [10])
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) * np.float32(1.01), bias.name))
        onnx.save(graph, model)
        return artifact


def test_a_wrong_engine_fails_parity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevit.runtimes.onnxruntime.OnnxRuntime", Wrong)
    with pytest.raises(ParityError, match="'ort: engine'") as caught:
        edgevit.export("shiftvit_cifar10", fmt="ort", out=tmp_path)
    assert caught.value.exit_status == 6
    assert str(caught.value).endswith("; the first module that differs is head (Linear)")
    assert [path.name for path in tmp_path.iterdir()] == ["explain"]  # the part of the graph that fails


def test_a_missing_runtime_is_reported_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevit.runtimes.openvino.OpenVino.module", "openvino_that_is_not_here")
    with pytest.raises(MissingError, match=r"pip install 'edgevit\[openvino\]'"):
        edgevit.export("shiftvit_cifar10", fmt="openvino", out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_reported_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("edgevit.pipeline.torch_source.capture", lambda *_, **__: pytest.fail("the work has begun"))
    mine = tmp_path / "shiftvit_cifar10-fp32-onnx" / "mine"
    mine.parent.mkdir()
    mine.touch()
    assert main(["export", "shiftvit_cifar10", "--fmt", "ort,onnx", "--no-latency", "--out", str(tmp_path)]) == 4
    assert "exists and is not a bundle" in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.rglob("*")) == [mine.parent, mine]


def test_a_folder_created_meanwhile_leaves_nothing_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "twoheads-fp32-onnx" / "mine"

    def write(*arguments: Any, **options: Any) -> Any:
        mine.parent.mkdir()
        mine.touch()
        return write_bundles(*arguments, **options)

    write_bundles = bundle_writer.write_bundles
    monkeypatch.setattr(pipeline, "write_bundles", write)
    model = from_module(TwoHeads(), example_input=(torch.rand(1, 2), torch.rand(1, 4)))
    with pytest.raises(ExportError, match="exists and is not a bundle"):
        pipeline.run(model, ExportConfig(formats=("ort", "onnx"), out=tmp_path, verify=False, latency=False))
    assert list(tmp_path.rglob("*")) == [mine.parent, mine]


class BakedBatch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, 12)


def test_a_hardcoded_batch_is_an_export_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="batch"):
        edgevit.export(BakedBatch(), example_input=torch.rand(2, 3, 4), dynamic_batch=(1, 2, 4), out=tmp_path)


class Returns(nn.Module):
    """Returns a given combination of two different outputs."""

    def __init__(self, outputs: Callable[[torch.Tensor, torch.Tensor], object]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.outputs = outputs

    def forward(self, x: torch.Tensor) -> object:
        return self.outputs(self.linear(x), x.relu())


NO_TENSORS: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], object], str]] = {
    "None alone": (lambda *_: None, "returns nothing"),
    "nothing": (lambda *_: (), "returns nothing"),
    "no batch": (lambda first, _: first.sum(), "has no batch"),
    "one tensor twice": (lambda first, _: (first, first), "one tensor as two outputs"),
}


def test_photos_for_a_model_without_images_are_rejected(tmp_path: Path) -> None:
    """They used to be ignored silently."""
    module = Returns(lambda first, _: first)
    with pytest.raises(UsageError, match="--images needs a model with one image input"):
        edgevit.export(module, fmt="ort", example_input=torch.rand(1, 4), images=PHOTOS, out=tmp_path)


def test_a_folder_without_photos_is_reported_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgevit.pipeline.torch_source.capture", lambda *_, **__: pytest.fail("the work has begun"))
    with pytest.raises(UsageError, match="no image in"):
        edgevit.export("shiftvit_cifar10", images=tmp_path, out=tmp_path)


@pytest.mark.parametrize("kind", NO_TENSORS)
def test_outputs_other_than_tensors_are_an_export_error(kind: str, tmp_path: Path) -> None:
    outputs, message = NO_TENSORS[kind]
    with pytest.raises(ExportError, match=message):
        edgevit.export(Returns(outputs), fmt="ort", example_input=torch.rand(1, 4), out=tmp_path, latency=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("outputs", "names", "latency"),
    [
        pytest.param(
            lambda first, second: (first, None, second), ("output_0", "output_2"), True, marks=pytest.mark.large
        ),
        (lambda first, second: {"b": first, "none": None, "a": (second, None)}, ("b", "a_0"), False),
    ],
)
def test_none_next_to_tensors_is_left_out(
    outputs: Callable[[torch.Tensor, torch.Tensor], object], names: tuple[str, str], latency: bool, tmp_path: Path
) -> None:
    module, x = Returns(outputs), torch.rand(1, 4)
    made = edgevit.export(module, fmt="ort", example_input=x, out=tmp_path, latency=latency)
    with edgevit.load(made) as engine:
        answer = engine.run({"x": x.numpy()})
    assert tuple(answer) == names
    assert np.allclose(answer[names[0]], module.linear(x).detach().numpy(), atol=1e-6)
    assert np.allclose(answer[names[1]], x.relu().numpy(), atol=1e-6)


def test_none_behind_the_only_output_is_left_out(tmp_path: Path) -> None:
    module = Returns(lambda first, _: (first, None))
    made = edgevit.export(module, fmt="ort", example_input=torch.rand(1, 4), out=tmp_path)
    with edgevit.load(made) as engine:
        assert [spec.name for spec in engine.outputs] == ["output"]


def test_an_input_that_is_returned_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="returns its input input unchanged"):
        edgevit.export(nn.Identity(), example_input=torch.rand(1, 4), out=tmp_path)


class DataDependent(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


def test_a_module_that_cannot_be_traced_is_an_export_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot trace DataDependent"):
        edgevit.export(DataDependent(), example_input=torch.rand(1, 4), out=tmp_path)


def test_a_module_needs_an_example_input() -> None:
    with pytest.raises(UsageError, match="example_input="):
        edgevit.export(TwoHeads())


@pytest.mark.parametrize("model", [3, None, TwoHeads, Path("shiftvit_t")])
def test_other_types_than_models_are_rejected(model: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"not a {type(model).__name__}"):
        edgevit.export(model, example_input=torch.rand(1, 4), out=tmp_path)


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.complex64])
def test_an_example_in_another_dtype_is_rejected(dtype: torch.dtype, tmp_path: Path) -> None:
    module = Returns(lambda first, _: first).to(dtype)
    with pytest.raises(UsageError, match=f"example_input is {str(dtype)[6:]}; convert module and input to float32"):
        edgevit.export(module, example_input=torch.rand(1, 4).to(dtype), out=tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_rejected(tmp_path: Path) -> None:
    x, trace = torch.rand(1, 4), cast("Any", torch.jit.trace)
    with pytest.raises(UsageError, match="does not support TorchScript"):
        edgevit.export(trace(nn.Linear(4, 3), x), example_input=x, out=tmp_path)


class Leaves(nn.Module):
    """Exits while it is traced, or on other inputs than its example."""

    def __init__(self, *, traced: bool) -> None:
        super().__init__()
        self.traced = traced

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.traced or (not torch.compiler.is_compiling() and x.min() < 0):
            sys.exit(3)
        return x.relu()


@pytest.mark.parametrize(
    ("traced", "message"),
    [(True, r"Leaves.forward\(\) fails on its example input"), (False, "leaves failed on verification")],
)
def test_a_module_that_exits_is_an_export_error(traced: bool, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        edgevit.export(Leaves(traced=traced), example_input=torch.rand(1, 4), out=tmp_path)


def test_an_input_that_openvino_removes_is_named(tmp_path: Path) -> None:
    class Unused(nn.Module):
        def forward(self, x: torch.Tensor, spare: torch.Tensor) -> torch.Tensor:
            return x.relu()

    with pytest.raises(ExportError, match=r"no output depends on input spare.*; remove the argument from forward\(\)$"):
        edgevit.export(Unused(), fmt="openvino", example_input=(torch.rand(1, 4),) * 2, out=tmp_path)


class DoublesInput(nn.Module):
    """Changes its input in place and returns it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2).flatten(1)


def test_a_module_that_works_in_place_leaves_the_callers_input_alone() -> None:
    """Repeated runs grew to infinity, and ONNX Runtime was blamed for it."""
    x = np.ones((1, 4), np.float32)
    specs = (TensorSpec("x", "float32", (1, 4)),), (TensorSpec("output", "float32", (1, 4)),)
    with TorchEngine(DoublesInput(), *specs, threads=torch.get_num_threads()) as engine:
        answers = [engine.run({"x": x})["output"] for _ in range(2)]
    assert x.tolist() == [[1, 1, 1, 1]]
    assert answers[0].tolist() == answers[1].tolist() == [[2, 2, 2, 2]]


def test_a_module_in_half_precision_fails_on_its_example(tmp_path: Path) -> None:
    """torch.export traces it, and the export said that the example input worked."""
    with pytest.raises(ExportError, match=r"fails on its example input of shape \(1, 16\): .*; .*module\.float\(\)"):
        edgevit.export(nn.Linear(16, 4).half(), example_input=torch.rand(1, 16), out=tmp_path)


class BFloat16(nn.Linear):
    """Computes in bfloat16 inside, with inputs and outputs in float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.bfloat16()).float()


def test_a_layer_in_bfloat16_is_named(tmp_path: Path) -> None:
    """ONNX Runtime was said to be unable to load the graph."""
    with pytest.raises(ExportError, match=r"forward\(\) computes .*(Gemm|MatMul).* in bfloat16"):
        edgevit.export(BFloat16(16, 4).bfloat16(), example_input=torch.rand(1, 16), out=tmp_path)


class Branches(nn.Module):
    """Parts in training mode and one in eval mode; forward() fails on request."""

    def __init__(self, *, fails: bool) -> None:
        super().__init__()
        self.fails = fails
        self.trained = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
        self.frozen = nn.BatchNorm1d(4).eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fails:
            raise ValueError("fails on request")
        answer: torch.Tensor = self.frozen(self.trained(x))
        return answer


@pytest.mark.parametrize("fails", [False, True])
def test_the_users_module_keeps_its_training_mode(fails: bool, tmp_path: Path) -> None:
    module = Branches(fails=fails)
    before = {name: part.training for name, part in module.named_modules()}
    assert before[""] and before["trained.1"] and not before["frozen"]
    with pytest.raises(ExportError, match="fails on request") if fails else nullcontext():
        edgevit.export(module, example_input=torch.rand(1, 4), out=tmp_path)
    assert {name: part.training for name, part in module.named_modules()} == before


SELECTED = """<ir_version: 10, opset_import: ["" : 20]> detector (float[1, 3, 8, 8] x)
=> (int32[1, 1] num, float[1, 5, 4] boxes, float[1, 5] scores, int32[1, 5] labels)
<int64[1] pixels = {-1}, int64[2] row = {1, -1}, int64[3] corners = {1, 5, 4}, int64[1] zero = {0}, int64[1] one = {1},
 int64[1] five = {5}, int64[1] twenty = {20}> {
    flat = Reshape (x, pixels)
    head = Slice (flat, zero, twenty)
    boxes = Reshape (head, corners)
    few = Slice (flat, zero, five)
    scores = Reshape (few, row)
    labels = Cast <to = 6> (scores)
    single = Slice (flat, zero, one)
    first = Reshape (single, row)
    num = Cast <to = 6> (first)
}"""


class Selected(nn.Module):
    """The detections of the graph above."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        flat = x.reshape(1, -1)
        return {
            "num": flat[:, :1].int(),
            "boxes": flat[:, :20].reshape(1, 5, 4),
            "scores": flat[:, :5],
            "labels": flat[:, :5].int(),
        }


MAP = """<ir_version: 10, opset_import: ["" : 20]> segmenter (float[1, 3, 8, 8] x) => (float[1, 3, 8, 8] logits) {
    logits = Relu (x)
}"""


def named_model(module: nn.Module, task: Task, form: OutputForm, *, names: int) -> ModelDescription:
    model = from_module(module, example_input=torch.zeros(1, 3, 8, 8))
    classes = tuple(f"class {index}" for index in range(names))
    return replace(model, origin=replace(model.origin, task=task, output_form=form), classes=classes)


def test_detections_selected_in_the_graph_have_names_of_any_number_of_classes(tmp_path: Path) -> None:
    """Their first output is the number of detections, (N, 1), which is no number of classes."""
    config = ExportConfig(formats=("onnx",), out=tmp_path, verify=False, latency=False)
    report = pipeline.run(named_model(Selected(), "detection", "nms", names=4), config, captured=parse(SELECTED))
    assert report.bundles[0].path.is_dir()


def test_class_names_of_a_segmenter_are_as_many_as_its_classes(tmp_path: Path) -> None:
    config = ExportConfig(formats=("onnx",), out=tmp_path, verify=False, latency=False)
    with pytest.raises(UsageError, match=r"4 class names for 3 classes"):
        pipeline.run(named_model(nn.ReLU(), "segmentation", "logits", names=4), config, captured=parse(MAP))


@pytest.mark.parametrize("name", ["\x1b[2J", "two\nlines", "\u202eright to left"])
def test_class_names_that_could_steer_a_terminal_are_refused(name: str, tmp_path: Path) -> None:
    config = ExportConfig(formats=("onnx",), out=tmp_path, verify=False, latency=False)
    model = replace(named_model(nn.ReLU(), "segmentation", "logits", names=3), classes=("a", "b", name))
    with pytest.raises(UsageError, match="has control characters"):
        pipeline.run(model, config, captured=parse(MAP))
    assert list(tmp_path.iterdir()) == []
