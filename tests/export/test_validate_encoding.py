"""Each rule of the encoding is broken once, alone, in the protobuf of an otherwise valid file."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from voxelquant.export import check_file
from voxelquant.export.libspconv_writer import to_model_proto


def attribute(proto: onnx.GraphProto, index: int, name: str) -> onnx.AttributeProto:
    return next(a for a in proto.node[index].attribute if a.name == name)


def drop_attribute(index: int, name: str) -> Callable[[onnx.GraphProto], None]:
    return lambda proto: proto.node[index].attribute.remove(attribute(proto, index, name))


def range_as_int(proto: onnx.GraphProto) -> None:
    found = attribute(proto, 1, "input_dynamic_range")
    found.Clear()
    found.CopyFrom(onnx.helper.make_attribute("input_dynamic_range", 2))


def stride_as_int(proto: onnx.GraphProto) -> None:
    attribute(proto, 5, "stride").CopyFrom(onnx.helper.make_attribute("stride", 2))


def flag_of_two(proto: onnx.GraphProto) -> None:
    attribute(proto, 1, "subm").i = 2


def two_values(proto: onnx.GraphProto) -> None:
    del attribute(proto, 1, "dilation").ints[2]


def not_text(proto: onnx.GraphProto) -> None:
    attribute(proto, 6, "format").s = b"\xff\xfe"


def unknown_attribute(proto: onnx.GraphProto) -> None:
    proto.node[1].attribute.append(onnx.helper.make_attribute("perm", [0]))


def repeated_attribute(proto: onnx.GraphProto) -> None:
    proto.node[1].attribute.append(attribute(proto, 1, "precision"))


def unknown_op(proto: onnx.GraphProto) -> None:
    proto.node[7].op_type = "Flatten"


def standard_reshape(proto: onnx.GraphProto) -> None:
    proto.node[7].input.append("7")


def no_bias(proto: onnx.GraphProto) -> None:
    del proto.node[3 - 1].input[2]
    del proto.initializer[5]


def external(proto: onnx.GraphProto) -> None:
    proto.initializer[2].data_location = onnx.TensorProto.EXTERNAL


def as_float32(proto: onnx.GraphProto) -> None:
    proto.initializer[3].CopyFrom(
        onnx.numpy_helper.from_array(np.zeros(16, np.float32), "spconv1.bias")
    )


def typed_fields(proto: onnx.GraphProto) -> None:
    bias = onnx.helper.make_tensor("spconv1.bias", onnx.TensorProto.FLOAT16, [16], [0.0] * 16)
    proto.initializer[3].CopyFrom(bias)


def short_bytes(proto: onnx.GraphProto) -> None:
    proto.initializer[3].raw_data = proto.initializer[3].raw_data[:-1]


def negative_size(proto: onnx.GraphProto) -> None:
    proto.initializer[3].dims[0] = -16


def float_output(proto: onnx.GraphProto) -> None:
    proto.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def twice(proto: onnx.GraphProto) -> None:
    proto.initializer.append(proto.initializer[0])


ENCODING_CASES = [
    ("error", "conv1", "attribute-type", range_as_int),
    ("error", "conv3", "attribute-type", stride_as_int),
    ("error", "conv1", "attribute-value", flag_of_two),
    ("error", "conv1", "attribute-value", two_values),
    ("error", "scatter0", "attribute-value", not_text),
    ("error", "conv1", "attribute-missing", drop_attribute(1, "kernel_size")),
    ("error", "conv1", "attribute-missing", drop_attribute(1, "output_bound")),
    ("error", "reshape0", "attribute-missing", drop_attribute(7, "dims")),
    ("warning", "conv1", "attribute-missing", drop_attribute(1, "in_channels")),
    ("warning", "conv1", "attribute-missing", drop_attribute(1, "groups")),
    ("warning", "conv2", "attribute-missing", drop_attribute(2, "activation")),
    ("warning", "conv1", "attribute-unknown", unknown_attribute),
    ("error", "conv1", "attribute-repeated", repeated_attribute),
    ("error", "reshape0", "op-type", unknown_op),
    ("error", "reshape0", "node-arity", standard_reshape),
    ("error", "conv2", "bias-missing", no_bias),
    ("error", "spconv1.weight", "initializer-external", external),
    ("error", "spconv1.bias", "initializer-type", as_float32),
    ("error", "spconv1.bias", "initializer-not-raw", typed_fields),
    ("error", "spconv1.bias", "initializer-size", short_bytes),
    ("error", "spconv1.bias", "initializer-size", negative_size),
    ("error", "spconv0.weight", "initializer-repeated", twice),
    ("warning", "8", "value-type", float_output),
]


@pytest.mark.parametrize(
    ("severity", "name", "rule", "edit"),
    ENCODING_CASES,
    ids=[f"{rule}-{edit.__name__}" for _, _, rule, edit in ENCODING_CASES],
)
def test_a_broken_encoding_is_named_alone(severity, name, rule, edit, residual_graph) -> None:
    model = to_model_proto(residual_graph)
    edit(model.graph)
    found = check_file(model.SerializeToString())
    assert [(d.severity, d.node, d.rule) for d in found] == [(severity, name, rule)]
