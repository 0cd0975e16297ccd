"""The compiler's kernel list: parsed from a recorded sample, and from real builds of good and bad graphs."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from edgevit import create_model
from edgevit.cli.plan import comparison_parts, comparison_table, plan_parts, plan_table
from edgevit.errors import BuildError, UsageError
from edgevit.export import passes
from edgevit.export.capture import capture
from edgevit.models.initialization import randomize
from edgevit.runtimes.tensorrt_rtx.compiler import Compiled
from edgevit.runtimes.tensorrt_rtx.kernels import PROXY, Kernel, KernelPlan, KernelTensor, parse_layers, plan, read_plan
from tests.helpers.onnx_files import attention, lstm, save_graph, shift_block
from tests.helpers.skips import needs_rtx

# Lines of builds of ShiftViT-T and DeiT-T for compute capability 86 by TensorRT-RTX 1.7.1.
SAMPLE = Path(__file__).with_name("rtx_kernel_list.txt").read_bytes().decode()
# Lines of a build of an LSTM over 64 steps: a scalar, the product of the inputs, a kernel of the loop, its counter and
# its jump back.
LOOP = Path(__file__).with_name("rtx_loop_kernel_list.txt").read_bytes().decode()
FLAGS = (
    "is_copy",
    "is_attention",
    "is_softmax",
    "is_norm",
    "is_shift",
    "fuses_shift",
    "is_constant_move",
    "multiplies",
)


def sample() -> tuple[Kernel, ...]:
    return parse_layers(SAMPLE, {})


def sample_plan(**changes: object) -> KernelPlan:
    values = {"file": "a.onnx", "compute_capabilities": (86,), "compiler": "1.7.1.116", "kernels": sample(), **changes}
    return KernelPlan(**values)  # type: ignore[arg-type]


def compiled(layers: str) -> Compiled:
    return Compiled(
        engine=b"", layers=layers, operators={}, misread=(), dynamic_batch=False, version="1.7.1.116", build_s=1.0
    )


# The parser


@pytest.mark.parametrize(
    ("start", "flags", "read", "written", "precision"),
    [
        ("__myl_CastConc_", {"is_copy"}, 1 * 3 * 224 * 224 * 4, 1 * 4 * 224 * 224 * 2, "fp32"),
        ("patch_embed.proj/Conv", {"multiplies"}, 4 * 224 * 224 * 2, 96 * 56 * 56 * 2, "fp16"),
        ("__myl_Move_", {"is_copy", "is_norm", "is_constant_move"}, 0, 4, "Int32"),
        ("__myl_CorrDiv", {"multiplies"}, 96 * 56 * 56 * 2, 192 * 56 * 56 * 2, "fp16"),
        # The block's input appears five times in the line and is read once, as are two edges of 8 channels.
        ("__myl_SlicSlicConcSlicConcSlicConcSlicConcConcReshCastMean_", {"is_norm", "fuses_shift"},
         (96 * 56 * 56 + 2 * 8 * 56) * 2 + 4, 96 * 56 * 56 * (2 + 4) + (640 * 336 + 1) * 4, "fp16"),
        ("__myl_Tran_", {"is_copy"}, 96 * 56 * 56 * 2, 96 * 56 * 56 * 2, "fp16"),
        ("__myl_Inor_", {"is_norm"}, 96 * 56 * 56 * 2, 96 * 56 * 56 * 2, "fp16"),
        ("__myl_SlicSlicConcSlicConcSlicConcSlicConcConcMove_", {"is_copy", "is_shift"},
         (96 * 56 * 56 + 2 * 8 * 56) * 2, 2 * 96 * 56 * 56 * 2, "fp16"),
        ("_gemm_mha", {"is_attention", "multiplies"}, 3 * 3 * 197 * 64 * 2, 3 * 197 * 64 * 2, "fp16"),
        ("__myl_MaxrSubExp", {"is_softmax"}, 3 * 197 * 197 * 4, 3 * 197 * 197 * 4, "fp32"),
        ("__mye91214+", {"multiplies"}, 197 * 192 * 4, 3 * 197 * 192 * 4, "fp32"),
    ],
)  # fmt: skip
def test_a_kernels_kind_and_sizes_are_parsed(
    start: str, flags: set[str], read: int, written: int, precision: str
) -> None:
    (kernel,) = (kernel for kernel in sample() if kernel.name.startswith(start))
    assert {flag for flag in FLAGS if getattr(kernel, flag)} == flags
    assert (kernel.bytes_read, kernel.bytes_written) == (read, written)
    assert kernel.precision == precision


def row_kernel(name: str, *, operators: tuple[str, ...], weight: str = "Half") -> Kernel:
    """A kernel that reads statistics in fp32, of which the weights have another type."""
    return Kernel(
        name=f"__myl_{name}_myl0_38", kind="kgen", nodes=(), operators=operators,
        inputs=(KernelTensor("x", "Float", (1, 288)),), constants=(KernelTensor("w", weight, (288, 10)),),
        outputs=(KernelTensor("y", "Half", (1, 10)),),
    )  # fmt: skip


def test_a_layer_of_one_row_is_a_matmul_in_the_precision_of_its_weights() -> None:
    """The compiler writes it as products and their sums."""
    for name, operator in (("ReshMulSum", "Gemm"), ("AddSqrtDivMulAddReshMulSumAdd", "MatMul")):
        kernel = row_kernel(name, operators=("LayerNormalization", operator))
        assert (kernel.multiplies, kernel.precision) == (True, "fp16")


@pytest.mark.parametrize(
    ("name", "operators"),
    [
        ("MulAddSum", ("Gemm",)),  # a sum of other terms
        ("MulSum", ("ReduceL2", "Softmax")),  # no layer
        ("MaxrSubExpSumDivMul", ("Softmax", "Conv")),
    ],
)
def test_other_sums_are_no_matmuls(name: str, operators: tuple[str, ...]) -> None:
    kernel = row_kernel(name, operators=operators)
    assert (kernel.multiplies, kernel.precision) == (False, "fp32")


def test_a_kernels_modules_and_operators_are_parsed() -> None:
    kernels = {kernel.name: kernel for kernel in sample()}
    fused = kernels["__myl_CorrDivCastErfCastAddMulMul_myl0_11"]
    assert fused.modules == ("layers.0.blocks.0.mlp.act", "layers.0.blocks.0.mlp.fc1")
    assert fused.operators == ("Gelu", "Conv")
    assert fused.operations == ("Corr", "Div", "Cast", "Erf", "Cast", "Add", "Mul", "Mul")
    assert kernels["__myl_Tran_myl0_2"].modules == ()  # the compiler's own layout copy


def test_the_parsers_operator_takes_precedence_over_the_nodes_name() -> None:
    operators = {"patch_embed.norm/GroupNormalization_normalise": "InstanceNormalization"}
    (kernel,) = (kernel for kernel in parse_layers(SAMPLE, operators) if kernel.is_constant_move)
    assert kernel.operators == ("InstanceNormalization",)


def test_lines_that_launch_no_kernel_are_not_counted() -> None:
    assert "LayerType: signal" in SAMPLE
    assert len(sample()) == SAMPLE.count("LayerType: ") - 1


def test_steps_of_a_loop_on_the_host_are_not_counted() -> None:
    kinds = [line.partition("LayerType: ")[2].partition(",")[0] for line in LOOP.splitlines()[1:]]
    assert kinds == ["memset", "gemm", "kgen", "add", "cjmp"]
    assert [kernel.kind for kernel in parse_layers(LOOP, {})] == ["gemm", "kgen"]


def test_a_memset_of_several_values_is_a_kernel() -> None:
    cleared = LOOP.replace("__d^0i64_myl0, Dimensions: [1]", "__d^0i64_myl0, Dimensions: [8]")
    assert cleared != LOOP
    assert [kernel.kind for kernel in parse_layers(cleared, {})] == ["memset", "gemm", "kgen"]


def test_a_loop_and_a_branch_are_warnings() -> None:
    branch = LOOP.replace("JumpTargetThen: __myl_ReshMulSumAdd_myl0_38", "JumpTargetThen: __myl_Exp_myl0_65")
    assert branch != LOOP
    for layers, words in ((LOOP, "counted once, and run once for each iteration"), (branch, r"branches \(If\)")):
        (warning,) = read_plan(compiled(layers), Path("a.onnx"), (86,)).warnings
        assert re.search(words, warning)
    assert read_plan(compiled(SAMPLE), Path("a.onnx"), (86,)).warnings == ()


def test_a_dynamic_batch_has_the_given_size() -> None:
    dynamic = SAMPLE.replace("Dimensions: [1,", "Dimensions: [-1,")
    one, two = (sum(kernel.bytes_read for kernel in parse_layers(dynamic, {}, batch=batch)) for batch in (1, 2))
    assert one == sum(kernel.bytes_read for kernel in sample())
    assert one < two < 2 * one  # the attention's shapes start with its three heads


@pytest.mark.parametrize("text", ["", "Layers:\n", SAMPLE.replace("Outputs: [", "Results: [")])
def test_a_list_of_another_form_is_an_error(text: str) -> None:
    with pytest.raises(BuildError, match="cannot parse the kernel list"):
        parse_layers(text, {})


# The plan


def test_totals_exclude_constant_moves() -> None:
    totals = sample_plan().totals
    assert (totals.kernels, totals.constant_moves) == (10, 1)
    assert totals.bytes_read == sum(kernel.bytes_read for kernel in sample())
    assert totals.bytes_written == sum(kernel.bytes_written for kernel in sample()) - 4
    assert (totals.copies, totals.shift_kernels, totals.fused_shifts) == (3, 1, 1)
    assert (totals.fused_attentions, totals.unfused_softmaxes, totals.norm_kernels) == (1, 1, 2)


def test_matmuls_are_counted_by_precision() -> None:
    assert sample_plan().precisions == {"fp16": 3, "fp32": 1}


@pytest.mark.parametrize("changes", [{"compute_capabilities": (89,)}, {"compiler": "1.8.0.1"}])
def test_plans_for_different_targets_cannot_be_compared(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="cannot compare: "):
        sample_plan().compare(sample_plan(**changes))


def test_a_comparison_names_the_modules_that_differ() -> None:
    shorter = sample_plan(file="b.onnx", kernels=tuple(kernel for kernel in sample() if not kernel.is_softmax))
    comparison = sample_plan().compare(shorter)
    assert comparison.modules == (("blocks.0.attn", 2, 1),)
    assert ("unfused_softmaxes", 1, 0) in comparison.totals
    assert json.loads(json.dumps(comparison.to_json()))["totals"]["kernels"] == [10, 9]


def test_a_plan_converts_to_json() -> None:
    written = json.loads(json.dumps(sample_plan().to_json(), allow_nan=False))
    assert written["proxy"] == PROXY
    assert written["kernels"][1]["modules"] == ["patch_embed.proj"]
    assert written["totals"]["bytes_moved"] == written["totals"]["bytes_read"] + written["totals"]["bytes_written"]


def printed(*parts: object) -> str:
    console = Console(file=io.StringIO(), width=200)
    for part in parts:
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_tables_say_that_they_are_a_proxy() -> None:
    one, other = sample_plan(), sample_plan(file="b.onnx", warnings=("read with care",))
    compared = printed(*comparison_parts(one.compare(other)))
    for text in (printed(*plan_parts(one)), compared):
        assert "proxy" in text
        assert "no latency" in " ".join(text.split())
    assert "warning: b.onnx: read with care" in compared


def test_tables_show_every_kernel_and_every_total() -> None:
    table = printed(plan_table(sample_plan()))
    assert "layers.0.blocks.0.mlp.fc1" in table
    assert "copy shift" in table
    comparison = sample_plan().compare(sample_plan(file="b.onnx"))
    assert "kernels with only a spatial shift" in printed(comparison_table(comparison))


# Real builds


@needs_rtx
def test_a_shift_is_fused_into_the_norm_after_it(tmp_path: Path) -> None:
    found = plan(shift_block(tmp_path / "m.onnx"))
    assert (found.totals.shift_kernels, found.totals.fused_shifts) == (0, 1)
    assert found.totals.norm_kernels > 0
    (shift,) = (kernel for kernel in found.kernels if kernel.fuses_shift)
    assert {"block", "block.norm"}.issubset(shift.modules)


@needs_rtx
def test_a_shift_with_nothing_after_it_is_a_kernel(tmp_path: Path) -> None:
    """The counter-test: a shift that costs a kernel is counted."""
    model = save_graph(
        tmp_path / "m.onnx",
        """g (float16[1, 8, 16, 16] x) => (float16[1, 8, 16, 16] y)
        <int64[1] a = {0}, int64[1] b = {4}, int64[1] c = {8}, int64[1] axis = {1}>""",
        {
            "block/Slice": "p = Slice(x, a, b, axis)",
            "block/Slice_1": "q = Slice(x, b, c, axis)",
            "block/Concat": "y = Concat <axis = 1> (q, p)",
        },
    )
    assert plan(model).totals.shift_kernels == 1


@needs_rtx
@pytest.mark.parametrize(("dtype", "fused", "softmaxes"), [("float16", 1, 0), ("float", 0, 1)])
def test_attention_fuses_in_fp16_and_not_in_fp32(tmp_path: Path, dtype: str, fused: int, softmaxes: int) -> None:
    found = plan(attention(tmp_path / "m.onnx", dtype))
    assert (found.totals.fused_attentions, found.totals.unfused_softmaxes) == (fused, softmaxes)
    assert set(found.precisions) == {"fp16" if fused else "fp32"}


@needs_rtx
def test_a_norm_that_the_compiler_misreads_is_a_warning(tmp_path: Path) -> None:
    """Its kernels are fewer, and compute something else."""
    model = save_graph(
        tmp_path / "m.onnx",
        "g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y)",
        {"blocks.0.norm/GroupNormalization": "y = GroupNormalization <num_groups = 1> (x, s, b)"},
        {"s": (4,), "b": (4,)},
        opset=21,
    )
    (warning,) = plan(model).warnings
    assert "issue 4756" in warning
    assert "blocks.0.norm/GroupNormalization" in warning


@needs_rtx
def test_a_dynamic_batch_is_one_by_default_with_a_warning(tmp_path: Path) -> None:
    linear = {"fc/Gemm": "y = Gemm (x, w)"}
    model = save_graph(tmp_path / "m.onnx", "g (float[N, 4] x) => (float[N, 4] y)", linear, {"w": (4, 4)})
    assert plan(model).warnings == ("the batch is dynamic; this plan is for 1 (--batch N)",)
    larger = plan(model, batch=8)
    assert larger.warnings == ("the batch is dynamic; this plan is for 8 (--batch N)",)
    assert larger.totals.bytes_written == 8 * plan(model).totals.bytes_written
    fixed = save_graph(tmp_path / "m.onnx", "g (float[1, 4] x) => (float[1, 4] y)", linear, {"w": (4, 4)})
    assert plan(fixed).warnings == ()
    with pytest.raises(UsageError, match="has a fixed batch, so it cannot be 8"):
        plan(fixed, batch=8)


@needs_rtx
def test_the_kernels_of_a_loop_are_counted_once(tmp_path: Path) -> None:
    found = plan(lstm(tmp_path / "m.onnx"))
    assert {kernel.kind for kernel in found.kernels} <= {"kgen", "gemm"}
    assert any("once for each iteration" in warning for warning in found.warnings)


@needs_rtx
def test_the_kernels_of_both_branches_are_counted(tmp_path: Path) -> None:
    branches = (
        "then_branch = t () => (float[1, 16] a) {a = Exp (x)}, else_branch = e () => (float[1, 16] b) {b = Tanh (x)}"
    )
    model = save_graph(
        tmp_path / "m.onnx",
        "g (float[1, 16] x, bool[1] c) => (float[1, 16] y)",
        {"head/If": f"y = If (c) <{branches}>"},
    )
    found = plan(model)
    assert {"Exp", "Tanh"} <= {operation for kernel in found.kernels for operation in kernel.operations}
    assert any("branches (If)" in warning for warning in found.warnings)


@needs_rtx
def test_an_exported_shiftvit_has_no_kernels_for_shifts(tmp_path: Path) -> None:
    model = create_model("shiftvit_t", embed_dim=24, depths=(1, 1, 1, 1))
    randomize(model, seed=0)
    captured = capture(model, (torch.randn(1, 3, 64, 64),), input_names=["images"], output_names=["logits"])
    lowered = passes.specialize(passes.optimize(captured.graph), "trt-rtx")
    lowered.save(tmp_path / "m.onnx")
    found = plan(tmp_path / "m.onnx")
    assert found.warnings == ()
    assert (found.totals.shift_kernels, found.totals.fused_shifts) == (0, 4)


@needs_rtx
def test_an_unknown_compute_capability_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"does not support compute capability 87 \(Jetson Orin\); use one of .*--sm 86"
    ):
        plan(tmp_path / "m.onnx", compute_capability=87)
