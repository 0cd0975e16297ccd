"""Convolutions that stay in float since their conversions cost more than int8 saves."""

from __future__ import annotations

import re

import numpy as np
import pytest

from edgevit import cpu
from edgevit.export.graph import OnnxGraph
from edgevit.export.macs import graph_macs
from edgevit.export.quantization.calibration import collect_ranges
from edgevit.export.quantization.groups import GroupChoice
from edgevit.export.quantization.int8 import find_groups, find_layers
from edgevit.export.quantization.sensitivity import (
    MIN_INT8_FRACTION,
    LayerChoice,
    NoiseMeasurement,
    quantize_with_fallback,
)
from edgevit.export.quantization.speed_rule import CONVERSIONS, GROUPED, SpeedRule
from tests.helpers.formats import INT8_SCHEMES
from tests.helpers.graphs import noise
from tests.helpers.quantization import checked_graph, load

SCHEME = INT8_SCHEMES["ort"]
LARGE = "Conv <pads = [1, 1, 1, 1]>"  # 64 to 64 channels: 288 multiply-adds for each number of its two maps
DEPTHWISE = "Conv <group = 64, pads = [1, 1, 1, 1]>"  # 4.5
GROUPED_3X3 = "Conv <group = 2, pads = [1, 1, 1, 1]>"  # 144
PLAIN = SpeedRule()  # without the rule


def graph(body: str, *, channels: int = 64) -> OnnxGraph:
    """Parse a graph that ends in y; its first convolution reads an image, and each name of a weight is its shape."""
    text = f"""(float[batch, 3, 8, 8] image) => (float[batch, {channels}, 8, 8] y) {{
        stem = Conv <pads = [1, 1, 1, 1]> (image, w64_3_3_3)
        x = Sigmoid (stem)
        {body}
    }}"""
    names = set(re.findall(r"w[\d_]+", text))
    weights = {name: noise(*map(int, name[1:].split("_")), seed=len(name), scale=0.1) for name in sorted(names)}
    return checked_graph(text, **weights, two=np.asarray(2, np.float32))


def reasons(found: OnnxGraph, rule: SpeedRule | None = None) -> dict[str, str]:
    layers = find_layers(found, rule or SpeedRule.of(SCHEME))
    return {layer.name.removeprefix("net/"): layer.skip_reason for layer in layers}


def large(output: str, source: str) -> str:
    return f"{output} = {LARGE} ({source}, w64_64_3_3)"


def depthwise(output: str, source: str) -> str:
    return f"{output} = {DEPTHWISE} ({source}, w64_1_3_3)"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"{large('l', 'x')} p = Sigmoid (l) {depthwise('a', 'p')} y = Mul (a, two)", CONVERSIONS),
        (f"{large('p', 'x')} {depthwise('a', 'p')} {large('y', 'a')}", ""),
        (f"{large('p', 'x')} q = Relu (p) {depthwise('a', 'q')} b = Relu (a) {large('y', 'b')}", ""),
        (f"{large('p', 'x')} q = Clip (p) {depthwise('a', 'q')} b = Clip (a) {large('y', 'b')}", ""),
        (f"{large('p', 'x')} {depthwise('a', 'p')} y = Mul (a, two)", CONVERSIONS),  # float behind it
        (f"{large('l', 'x')} p = Sigmoid (l) {depthwise('a', 'p')} {large('y', 'a')}", CONVERSIONS),  # before it
        (f"{large('p', 'x')} {depthwise('a', 'p')} {large('b', 'a')} y = Mul (a, b)", CONVERSIONS),  # beside its reader
        (f"{large('p', 'x')} q = Sigmoid (p) {depthwise('a', 'q')} b = Add (a, q) {large('y', 'b')}", CONVERSIONS),
        (f"{large('p', 'x')} {large('q', 'p')} {depthwise('a', 'q')} b = Add (a, p) {large('y', 'b')}", ""),  # integers
    ],
)
def test_a_depthwise_convolution_is_int8_between_integers_alone(body: str, reason: str) -> None:
    found = graph(body)
    assert reasons(found)["a"] == reason
    assert reasons(found, PLAIN)["a"] == reasons(found, SpeedRule.of(INT8_SCHEMES["openvino"]))["a"] == ""


@pytest.mark.parametrize(
    ("inputs", "outputs", "reason"), [(40, 40, ""), (40, 39, CONVERSIONS), (24, 120, ""), (24, 119, CONVERSIONS)]
)
def test_a_convolution_between_float_operators_has_20_multiply_adds_for_each_number(
    inputs: int, outputs: int, reason: str
) -> None:
    body = f"""{large("l", "x")} p = Conv (l, w{inputs}_64_1_1) q = Sigmoid (p)
        a = Conv (q, w{outputs}_{inputs}_1_1) b = Sigmoid (a) y = Conv (b, w64_{outputs}_1_1)"""
    assert reasons(graph(body))["a"] == reason


def test_the_convolutions_that_share_an_input_share_its_conversion() -> None:
    """24 x 64 multiply-adds for 24 numbers, and half of 64 or all of them."""
    body = f"""{large("l", "x")} q = Sigmoid (l) a = Conv (q, w24_64_1_1) c = Sigmoid (a)
        {{}} d = Mul (e, two) s = Concat <axis = 1> (c, d) y = Conv (s, w64_48_1_1)"""
    assert reasons(graph(body.format("e = Conv (q, w24_64_1_1)")))["a"] == ""
    assert reasons(graph(body.format("e = Mul (c, two)")))["a"] == CONVERSIONS


def test_a_convolution_of_the_image_is_left_to_the_rule_of_few_channels() -> None:
    found = graph(f"{large('l', 'x')} y = Sigmoid (l)")
    assert reasons(found) == {"stem": "", "l": ""}  # 27 multiply-adds for 1 number: 25.8 with its inputs
    body = "x = Conv <kernel_shape = [1, 1]> (image, w8_3_1_1) y = Conv <pads = [1, 1, 1, 1]> (x, w64_8_3_3)"
    text = f"(float[batch, 3, 8, 8] image) => (float[batch, 64, 8, 8] y) {{ {body} }}"
    small = checked_graph(text, w8_3_1_1=noise(8, 3, 1, 1), w64_8_3_3=noise(64, 8, 3, 3))
    assert reasons(small) == {"x": "", "y": ""}


def test_a_convolution_that_loses_its_neighbor_is_counted_again() -> None:
    """Two depthwise ones in a row have integers between them, until one of them stays in float."""
    body = f"{large('p', 'x')} {depthwise('a', 'p')} {depthwise('b', 'a')} c = Sigmoid (b) {large('y', 'c')}"
    assert reasons(graph(body)) == {"stem": "", "p": "", "a": CONVERSIONS, "b": CONVERSIONS, "y": ""}


HALF = """q = Mul (x, two) a = Conv (q, w32_64_1_1) b = Sigmoid (a) c = Conv (b, w16_32_1_1) d = Sigmoid (c)
    e = Conv (d, w64_16_1_1) f = Sigmoid (e) g = Conv <group = 2> (f, w128_32_1_1) h = Sigmoid (g)
    k = Conv <group = 64> (h, w64_2_1_1) y = Mul (k, two)"""  # 21.3, 10.7, 12.8, 21.3 and 0.7 for each number


def test_the_convolutions_with_the_fewest_conversions_are_int8_if_less_than_half_of_the_work_would_be() -> None:
    """Of 11,136 multiply-adds at a pixel the stem has 1,728 and `a` 2,048; `g` brings 4,096."""
    found = graph(HALF)
    assert reasons(found, PLAIN)["g"] == GROUPED
    assert reasons(found) == {"stem": "", "a": "", "c": CONVERSIONS, "e": CONVERSIONS, "g": "", "k": CONVERSIONS}
    layers = {layer.name: layer for layer in find_layers(found, SpeedRule.of(SCHEME))}
    assert sum(layer.macs for layer in layers.values() if not layer.skip_reason) >= graph_macs(found) / 2
    assert all(layers[f"net/{name}"].is_slow_by_rule for name in "cek")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("avx2", CONVERSIONS),
        ("avx2 avx_vnni", ""),
        ("avx2 avx512f", ""),
        ("avx2 avx512f avx512_vnni", ""),
        ("avx2 avx512f avx512_vnni avx_vnni amx_tile amx_int8 amx_bf16", ""),
        ("asimd asimddp", ""),
    ],
)
def test_openvino_leaves_them_in_float_with_avx2_alone(
    flags: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset(flags.split()))
    found = graph(f"{large('l', 'x')} p = Sigmoid (l) {depthwise('a', 'p')} y = Mul (a, two)")
    assert reasons(found, SpeedRule.of(INT8_SCHEMES["openvino"])) == {"stem": "", "l": "", "a": expected}


def test_tune_tries_the_convolutions_that_are_in_float_for_their_conversions_apart_from_those_in_int8() -> None:
    """Both depthwise convolutions have the same shape."""
    body = f"""{large("p", "x")} {depthwise("a", "p")} {large("q", "a")} r = Sigmoid (q) {depthwise("b", "r")}
        s = Sigmoid (b) {large("y", "s")}"""
    found = graph(body)
    groups = {group.name: group.in_int8 for group in find_groups(found, SCHEME)}
    assert groups["depthwise3x3-64-64-on-8x8"]
    assert not groups["float-depthwise3x3-64-64-on-8x8"]
    choice = LayerChoice(groups=(GroupChoice(group="float-depthwise3x3-64-64-on-8x8", in_int8=True, moved=True),))
    layers = {layer.name: layer for layer in map(choice.apply, find_layers(found, SpeedRule.of(SCHEME)))}
    assert (layers["net/a"].skip_reason, layers["net/b"].skip_reason) == ("", "")


def test_accuracy_goes_before_conversions() -> None:
    """With `y` in float less than half of the work is in int8, unless the narrow convolutions are too."""
    body = " ".join(f"c{i} = Conv (s{i}, w32_32_1_1) s{i + 1} = Sigmoid (c{i})" for i in range(4))
    found = graph(f"q = Mul (x, two) a = Conv (q, w32_64_1_1) s0 = Sigmoid (a) {body} y = Conv (s4, w64_32_1_1)")
    narrow = {f"c{i}" for i in range(4)}
    assert {name for name, reason in reasons(found).items() if reason == CONVERSIONS} == narrow
    feeds = [{"image": noise(1, 3, 8, 8, seed=seed)} for seed in range(2)]

    def rejection(quantized: OnnxGraph) -> str:
        return "y is in int8" if "w64_32_1_1_int8" in quantized.model.graph.initializers else ""

    _, plan = quantize_with_fallback(
        found,
        collect_ranges(found, feeds, load=load),
        scheme=SCHEME,
        acceptance_check=rejection,
        measurement=NoiseMeasurement(feeds=feeds, load=load),
    )
    kept = {node.name.removeprefix("net/"): node.reason for node in plan.kept}
    assert "y" in kept
    assert CONVERSIONS not in kept.values()
    assert plan.fraction >= MIN_INT8_FRACTION
