"""A report names what was measured and how: the engines by their hashes, and the cost of looking at the device."""

from __future__ import annotations

import dataclasses

from edgevit.latency.document.blocks import Facts, Table
from edgevit.latency.document.content import Session
from edgevit.latency.document.identity import engine_rows
from edgevit.latency.document.sections import sections_of
from edgevit.runtimes.base import CUDA_GRAPH
from tests.helpers.documents import NAMES, document, report, session, trace


def protocol(one: Session) -> dict[str, str]:
    (facts,) = [section.blocks[0] for section in sections_of(document(one)) if section.title == "Protocol"]
    assert isinstance(facts, Facts)
    return dict(facts.rows)


def test_an_engine_is_named_by_its_hashes_and_the_precision_that_was_read_back() -> None:
    for name, entry in zip(NAMES, session().entries, strict=True):
        rows = dict(engine_rows(entry))
        assert (rows["engine SHA-256"], rows["ONNX SHA-256"]) == (f"{name} engine", f"{name} onnx")
        assert rows["precision read back"] == rows["requested precision"] == name.split("-")[1]
        assert rows["runtime at the build"] == "ONNX Runtime 1.20.0" and rows["weights"] == "included vit.pth"


def test_an_engine_on_a_gpu_tells_how_it_ran() -> None:
    details = {**report().details, "cpu_wait": "spin", "host_memory": "pinned", CUDA_GRAPH: "a plugin allocates"}
    rows = dict(engine_rows(session(details=details).entries[0]))
    assert (rows["waits for the GPU by"], rows["host memory"]) == ("spin", "pinned")
    assert rows["CUDA graph"] == "a plugin allocates"


def test_the_time_to_the_first_answer_is_that_of_loading_and_the_first_run() -> None:
    costs = next(
        block
        for section in sections_of(document(session()))
        for block in section.blocks
        if isinstance(block, Table) and "first answer ms" in block.header
    )
    row = dict(zip(costs.header, costs.rows[0], strict=True))
    assert (row["load s"], row["first answer ms"]) == ("0.250", "262")


def test_the_protocol_states_how_often_the_device_was_sampled_and_what_that_costs() -> None:
    rows = protocol(session())
    assert rows["device sampling"] == "8 times at 1.0 Hz, 0.500 ms each, between timed runs"
    assert rows["rounds"].startswith("50, every engine one turn in each, in random order")
    broken = protocol(session(trace=dataclasses.replace(trace(), problem="a sensor failed")))
    assert broken["device sampling ended early"] == "a sensor failed"
    assert protocol(session(trace=None))["device sampling"].startswith("none: the device has no sensor")
