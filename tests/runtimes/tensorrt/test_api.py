"""Each name of TensorRT's Python API that edgevit uses exists in every version it is used with.

mypy checks our code against the protocols in runtimes/tensorrt/api.py and versions.py. These tests check the protocols
against `tensorrt_api.tsv`: one row for each name, with an x for each version of the Python package that has it. The
rows were read with `dir()` from the packages themselves, whose bindings import without TensorRT's own libraries.

For a new name in a protocol, add its row.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from edgevit.runtimes.tensorrt import api, builder, versions
from edgevit.runtimes.tensorrt.versions import TensorRtModule, TensorRtModule10, TensorRtModule86
from tests.fakes.tensorrt import api_table

# A pattern for the table's columns, by the suffix of a protocol's name.
COLUMNS = {"": "", "86": r"cu12_8\.6", "10": r"cu1[23]_1[01]\.|rtx", "Rtx": "rtx"}
# BuilderFlag.FP16 and INT8 exist up to 10; they are set in 8.6 only, so its protocol has them.


def protocol_names(protocol: type) -> list[str]:
    """Return the names that a protocol declares, as they are written in the table."""
    members = {*vars(protocol).get("__annotations__", ()), *(name for name in vars(protocol) if name[0] != "_")}
    owner = re.sub(r"(86|10|Rtx)$", "", protocol.__name__)
    members -= {"__version__"}
    return sorted(members if owner == "TensorRtModule" else (f"{owner}.{member}" for member in members))


PROTOCOLS = [
    cls
    for module in (api, versions)
    for cls in vars(module).values()
    if getattr(cls, "_is_protocol", False) and cls.__module__ == module.__name__ and cls is not api.Enumerator
]


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda cls: cls.__name__)
def test_each_name_exists_in_every_version_it_is_for(protocol: type) -> None:
    suffix = re.search(r"(86|10|Rtx)?$", protocol.__name__)
    assert suffix is not None
    names = protocol_names(protocol)
    assert names
    table = api_table()
    missing = [
        f"{name} in {version}"
        for name in names
        for version, exists in table.get(name, dict.fromkeys(table["Builder"], False)).items()
        if re.match(COLUMNS[suffix[1] or ""], version) and not exists
    ]
    assert missing == []


def test_the_table_has_each_release_line_and_shows_what_changed() -> None:
    table = api_table()
    for pattern in (r"cu12_8\.6", r"cu1[23]_10\.", r"cu1[23]_11\.", "rtx_"):
        assert any(re.match(pattern, version) for version in table["Builder"]), pattern

    def lacking(name: str) -> set[str]:
        return {version.partition(".")[0] for version, exists in table[name].items() if not exists}

    assert lacking("Builder.create_network") == set()
    assert lacking("BuilderFlag.FP16") == {"cu13_11", "rtx_1"}
    assert lacking("IProgressMonitor") == {"cu12_8"}


if TYPE_CHECKING:  # mypy reports an unneeded ignore if one of these mistakes is not an error

    def _mistakes(trt: TensorRtModule, trt_builder: api.Builder, config: api.IBuilderConfig, network: Any) -> None:
        trt_builder.create_netwrk(0)  # type: ignore[attr-defined]
        network_flag = trt.NetworkDefinitionCreationFlag  # type: ignore[attr-defined]  # another class in 8.6
        _ = trt.BuilderFlag.FP16, network_flag  # type: ignore[attr-defined]  # 8.6 only
        _ = trt.IProgressMonitor  # type: ignore[attr-defined]  # from 10 on
        config.set_flag(1)  # type: ignore[arg-type]  # a number instead of an enumeration member
        config.progress_monitor = None  # type: ignore[attr-defined]  # from 10 on
        builder._allow_precision(trt, config, network, "fp16")  # type: ignore[arg-type]  # not behind is_86
        builder._watch(trt, config, print)  # type: ignore[arg-type]  # not behind is_10
        if versions.is_86(trt):
            builder._allow_precision(trt, config, network, "fp16")
        if versions.is_10(trt):
            builder._watch(trt, config, print)

    def _wrong_version(trt: TensorRtModule86, newer: TensorRtModule10) -> None:
        _ = trt.IProgressMonitor  # type: ignore[attr-defined]
        _ = newer.BuilderFlag.INT8  # type: ignore[attr-defined]
