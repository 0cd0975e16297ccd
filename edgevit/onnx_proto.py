"""Field numbers of onnx.proto, for reading and writing ONNX files without the onnx package, which devices lack.

The classes have the names of the messages, and only the fields that edgevit uses
(https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

from __future__ import annotations

from enum import IntEnum


class ModelProto(IntEnum):
    IR_VERSION = 1
    GRAPH = 7
    OPSET_IMPORT = 8


class OperatorSetIdProto(IntEnum):
    VERSION = 2


class GraphProto(IntEnum):
    NODE = 1
    NAME = 2
    INITIALIZER = 5
    INPUT = 11
    OUTPUT = 12


class NodeProto(IntEnum):
    INPUT = 1
    OUTPUT = 2
    NAME = 3
    OP_TYPE = 4


class TensorProto(IntEnum):
    DIMS = 1
    DATA_TYPE = 2
    NAME = 8
    RAW_DATA = 9
    EXTERNAL_DATA = 13
    DATA_LOCATION = 14


class DataType(IntEnum):
    """Types of elements of TensorProto and TypeProto, named as in onnx.proto."""

    FLOAT = 1
    UINT8 = 2
    INT8 = 3
    INT32 = 6
    INT64 = 7
    FLOAT16 = 10


class DataLocation(IntEnum):
    """Places of a TensorProto's data."""

    EXTERNAL = 1


class StringStringEntryProto(IntEnum):
    KEY = 1
    VALUE = 2


class ValueInfoProto(IntEnum):
    NAME = 1
    TYPE = 2


class TypeProto(IntEnum):
    TENSOR_TYPE = 1


class TensorTypeProto(IntEnum):
    """TypeProto.Tensor."""

    ELEM_TYPE = 1
    SHAPE = 2


class TensorShapeProto(IntEnum):
    DIM = 1


class DimensionProto(IntEnum):
    """TensorShapeProto.Dimension."""

    DIM_VALUE = 1
