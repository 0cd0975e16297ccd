"""Protobuf fields, written and read without messages."""

from __future__ import annotations

import onnx
import pytest

from edgevit.protobuf import encode_bytes, encode_number, fields, read_number


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**31, 2**63 - 1])
def test_numbers_are_those_of_protobuf(value: int) -> None:
    encoded = encode_number(1, value)
    assert onnx.OperatorSetIdProto.FromString(b"\x10" + encoded[1:]).version == value
    (field,) = fields(encoded, 0, len(encoded))
    assert read_number(encoded, field) == value


def test_fields_of_a_message_are_found_where_they_stand() -> None:
    content = onnx.TensorProto(name="w", dims=[300, 2], raw_data=b"12345678", double_data=[0.5]).SerializeToString()
    found = list(fields(content, 0, len(content)))
    assert b"".join(content[field.start : field.end] for field in found) == content
    assert [content[field.value : field.end] for field in found if field.number == 9] == [b"12345678"]


@pytest.mark.parametrize("damaged", [encode_bytes(1, b"text")[:-1], b"\x08", b"\x08" + b"\xff" * 11, b"\x0b"], ids=str)
def test_a_damaged_message_is_a_value_error(damaged: bytes) -> None:
    with pytest.raises(ValueError, match="at byte"):
        list(fields(damaged, 0, len(damaged)))
