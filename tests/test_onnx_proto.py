"""Field numbers of onnx.proto."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import onnx
import pytest

from edgevit import onnx_proto

MESSAGES: dict[type[IntEnum], Any] = {
    onnx_proto.ModelProto: onnx.ModelProto,
    onnx_proto.OperatorSetIdProto: onnx.OperatorSetIdProto,
    onnx_proto.GraphProto: onnx.GraphProto,
    onnx_proto.NodeProto: onnx.NodeProto,
    onnx_proto.TensorProto: onnx.TensorProto,
    onnx_proto.StringStringEntryProto: onnx.StringStringEntryProto,
    onnx_proto.ValueInfoProto: onnx.ValueInfoProto,
    onnx_proto.TypeProto: onnx.TypeProto,
    onnx_proto.TensorTypeProto: onnx.TypeProto.Tensor,
    onnx_proto.TensorShapeProto: onnx.TensorShapeProto,
    onnx_proto.DimensionProto: onnx.TensorShapeProto.Dimension,
}
ENUMS: dict[type[IntEnum], Any] = {
    onnx_proto.DataType: onnx.TensorProto.DataType,
    onnx_proto.DataLocation: onnx.TensorProto.DataLocation,
}


@pytest.mark.parametrize("numbers", MESSAGES, ids=lambda each: each.__name__)
def test_field_numbers_are_those_of_the_onnx_package(numbers: type[IntEnum]) -> None:
    fields = MESSAGES[numbers].DESCRIPTOR.fields_by_name
    assert {each.name: each.value for each in numbers} == {
        each.name: fields[each.name.lower()].number for each in numbers
    }


@pytest.mark.parametrize("numbers", ENUMS, ids=lambda each: each.__name__)
def test_enumerators_are_those_of_the_onnx_package(numbers: type[IntEnum]) -> None:
    assert {each.name: each.value for each in numbers} == {
        each.name: ENUMS[numbers].Value(each.name) for each in numbers
    }


def test_no_message_is_left_unchecked() -> None:
    defined = {each for each in vars(onnx_proto).values() if isinstance(each, type) and each is not IntEnum}
    assert defined == {*MESSAGES, *ENUMS}
