"""Session settings: the engine runs with those that the manifest records, and refuses others."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import edgevit
from edgevit.bundles.bundle import Bundle
from edgevit.bundles.engine import load_engine
from edgevit.cli.main import main
from edgevit.cpu import cpu_flags
from edgevit.errors import BundleError, PrecisionError, UsageError
from edgevit.runtimes.base import BuildOptions
from edgevit.runtimes.denormals import can_set_denormals
from edgevit.runtimes.onnxruntime import OnnxRuntimeEngine
from edgevit.runtimes.openvino import INFERENCE_PRECISION, OpenVinoEngine
from edgevit.runtimes.registry import get_runtime
from edgevit.runtimes.session_settings import SessionSettings, Setting
from tests.helpers.bundles import damage, manifest_json

KNOWN = (Setting("spinning", ("on", "off")), Setting("arena", ("on", "off")))


def test_defaults_are_left_out_and_names_sorted() -> None:
    chosen = SessionSettings.of({"spinning": "off", "arena": "off"}, KNOWN, runtime="a runtime")
    assert chosen.chosen == (("arena", "off"), ("spinning", "off"))
    assert str(chosen) == "arena off, spinning off"
    assert SessionSettings.of({"spinning": "on"}, KNOWN, runtime="a runtime") == SessionSettings()
    assert SessionSettings().get(KNOWN[0]) == "on"


@pytest.mark.parametrize("chosen", [{"spining": "off"}, {"spinning": "maybe"}])
def test_an_unknown_name_or_value_is_a_usage_error(chosen: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="spinning|off, on"):
        SessionSettings.of(chosen, KNOWN, runtime="a runtime")


def test_a_runtime_without_settings_says_so() -> None:
    with pytest.raises(UsageError, match="has no session settings"):
        SessionSettings.of({"spinning": "off"}, (), runtime="a runtime")


@pytest.mark.parametrize("fmt", ["ort", "openvino"])
def test_every_setting_changes_nothing_but_speed(shared_bundle: Callable[[str], Bundle], fmt: str) -> None:
    bundle, runtime = shared_bundle(fmt), get_runtime(fmt)
    assert bundle.engine_path is not None
    feeds = bundle.references()[0].batch(2)
    with load_engine(bundle, threads=2) as engine:
        expected = engine.run(feeds)
    exact = [each for each in runtime.settings if not each.of_precision]
    chosen = runtime.session_settings({each.name: each.values[-1] for each in exact})
    assert len(chosen.chosen) == len(exact)
    options = BuildOptions(threads=2, dynamic_batch=bundle.options.dynamic_batch, session=chosen)
    with runtime.open(bundle.engine_path, options) as engine:
        for name, output in engine.run(feeds).items():
            np.testing.assert_allclose(output, expected[name], rtol=1e-3, atol=1e-3)


def record(bundle: Bundle, *, threads: int, **session: str) -> Bundle:
    damage(bundle.path, "build.threads", threads)
    damage(bundle.path, "build.session", session)
    return Bundle.open(bundle.path)


@pytest.mark.parametrize("fmt", ["ort"])
def test_onnx_runtime_runs_with_the_recorded_settings(own_bundle: Bundle) -> None:
    bundle = record(
        own_bundle,
        threads=2,
        spinning="off",
        arena="off",
        memory_pattern="off",
        denormals="zero",
        graph_optimization="extended",
    )
    for engine in (edgevit.load(bundle), load_engine(bundle)):
        assert isinstance(engine, OnnxRuntimeEngine)
        options = engine._session.get_session_options()
        assert options.intra_op_num_threads == 2
        assert not options.enable_cpu_mem_arena
        assert not options.enable_mem_pattern
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
        if can_set_denormals():  # else some of the threads would keep them
            assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"
        assert "EXTENDED" in str(options.graph_optimization_level)
        engine.close()
    with edgevit.load(bundle, threads=1) as engine:
        assert isinstance(engine, OnnxRuntimeEngine)
        assert engine._session.get_session_options().intra_op_num_threads == 1  # --threads goes first


@pytest.mark.parametrize("fmt", ["openvino"])
def test_openvino_runs_with_the_recorded_settings(own_bundle: Bundle) -> None:
    bundle = record(own_bundle, threads=1, pinning="off", hyper_threading="off", hint="throughput", denormals="zero")
    with edgevit.load(bundle) as engine:
        assert isinstance(engine, OpenVinoEngine)
        names = ("INFERENCE_NUM_THREADS", "ENABLE_CPU_PINNING", "ENABLE_HYPER_THREADING", "PERFORMANCE_HINT")
        properties = {name: engine._compiled.get_property(name) for name in names}
    assert properties["INFERENCE_NUM_THREADS"] == 1
    assert not properties["ENABLE_CPU_PINNING"]
    assert not properties["ENABLE_HYPER_THREADING"]
    assert "THROUGHPUT" in str(properties["PERFORMANCE_HINT"]).upper()


@pytest.mark.parametrize("fmt", ["ort"])
def test_settings_that_the_runtime_does_not_know_are_a_damaged_bundle(own_bundle: Bundle) -> None:
    bundle = record(own_bundle, threads=1, hint="throughput")
    with pytest.raises(BundleError, match="hint"):
        edgevit.load(bundle)


@pytest.mark.parametrize("fmt", ["ort"])
def test_a_rebuilt_bundle_keeps_its_settings_and_another_format_drops_them(own_bundle: Bundle, tmp_path: Path) -> None:
    bundle = record(own_bundle, threads=1, spinning="off")
    assert main(["build", str(bundle.path), "--no-latency"]) == 0
    assert manifest_json(bundle.path)["build"]["session"] == {"spinning": "off"}
    assert manifest_json(bundle.path)["build"]["threads"] == 1
    assert main(["build", str(bundle.path), "--fmt", "openvino", "--no-latency"]) == 0
    (other,) = [path for path in tmp_path.iterdir() if path.name.endswith("openvino")]
    assert manifest_json(other)["build"].keys().isdisjoint({"session", "threads"})


@pytest.mark.parametrize("fmt", ["openvino"])
def test_an_fp32_bundle_that_asks_for_a_lower_inference_precision_is_refused(own_bundle: Bundle) -> None:
    bundle = record(own_bundle, threads=1, inference_precision="bf16")
    assert main(["verify", str(bundle.path)]) == 9
    with pytest.raises(PrecisionError, match="requested fp32, but the session settings ask OpenVINO for bf16"):
        edgevit.load(bundle)


def test_the_first_inference_precision_that_openvino_offers_is_f32() -> None:
    assert get_runtime("openvino").usable_values(INFERENCE_PRECISION)[0] == "f32"


@pytest.mark.skipif(
    platform.machine() != "x86_64" or any(flag.startswith(("avx512", "amx", "avx_vnni")) for flag in cpu_flags()),
    reason="for x86 processors without instructions for bf16 or f16",
)
def test_openvino_offers_f32_alone_on_a_processor_without_lower_precisions() -> None:
    assert get_runtime("openvino").usable_values(INFERENCE_PRECISION) == ("f32",)
