"""Attributes of nodes: the spec of each, and its ONNX form in both directions.

NVIDIA's parser reads a field without looking at its type: an INT where it reads a FLOAT is 0.0 to
it. Hence types come from the spec when writing, and are judged by it when reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from onnx import AttributeProto, NodeProto

from voxelquant.export.defects import Defect, error, warning

Ints = tuple[int, ...]
AttributeValue = int | float | str | tuple[int, ...] | tuple[float, ...] | None


class Kind(Enum):
    """ONNX type of an attribute; FLAG is an INT that holds 0 or 1."""

    INT = "INT"
    FLAG = "INT 0/1"
    INTS = "INTS"
    FLOAT = "FLOAT"
    FLOATS = "FLOATS"
    STRING = "STRING"


class Need(Enum):
    """What happens without the attribute."""

    REQUIRED = "the engine reads an unusable value without it"
    EXPECTED = "the engine falls back to a default without it"
    OPEN_ENGINE = "NVIDIA's parser does not read it, the open engine does"
    OPTIONAL = "may be left out"


@dataclass(frozen=True)
class AttributeSpec:
    """ONNX side of a field: type, number of values, need, and the value read when it is absent."""

    kind: Kind
    absent: AttributeValue
    need: Need
    count: int | None = None


_ONNX_TYPE = {
    Kind.INT: AttributeProto.INT,
    Kind.FLAG: AttributeProto.INT,
    Kind.INTS: AttributeProto.INTS,
    Kind.FLOAT: AttributeProto.FLOAT,
    Kind.FLOATS: AttributeProto.FLOATS,
    Kind.STRING: AttributeProto.STRING,
}


def write_attribute(name: str, spec: AttributeSpec, value: AttributeValue) -> AttributeProto:
    """The ONNX attribute of a value, with the type of its spec."""
    proto = AttributeProto(name=name)
    if isinstance(value, tuple):
        if spec.kind is Kind.INTS:
            proto.type = AttributeProto.INTS
            proto.ints.extend(int(v) for v in value)
        else:
            proto.type = AttributeProto.FLOATS
            proto.floats.extend(float(v) for v in value)
    elif isinstance(value, str):
        proto.type = AttributeProto.STRING
        proto.s = value.encode()
    elif value is not None and spec.kind is Kind.FLOAT:
        proto.type = AttributeProto.FLOAT
        proto.f = float(value)
    elif value is not None:
        proto.type = AttributeProto.INT
        proto.i = int(value)
    return proto


def read_attributes(
    name: str, proto: NodeProto, specs: dict[str, AttributeSpec], defects: list[Defect]
) -> dict[str, AttributeValue]:
    """Values of a node's attributes; where one is missing or mistyped, what the engine would see.

    Args:
        name: node name, for defects.
        proto: the node.
        specs: attributes of its op.
        defects: list to which findings are added.
    """
    present: dict[str, AttributeProto] = {}
    for attribute in proto.attribute:
        if attribute.name not in specs:
            message = f"got attribute {attribute.name!r}, which no engine reads"
            defects.append(warning(name, "attribute-unknown", message, "remove or rename it"))
        elif attribute.name in present:
            message = f"got attribute {attribute.name!r} twice"
            defects.append(error(name, "attribute-repeated", message, "keep one"))
        present.setdefault(attribute.name, attribute)
    values: dict[str, AttributeValue] = {}
    for key, spec in specs.items():
        if key in present:
            values[key] = _read_value(name, present[key], spec, defects)
            continue
        values[key] = spec.absent
        if spec.need is not Need.OPTIONAL:
            make = error if spec.need is Need.REQUIRED else warning
            message = f"got no attribute {key!r}: {spec.need.value}"
            defects.append(make(name, "attribute-missing", message, f"write it as {_need(spec)}"))
    return values


def _need(spec: AttributeSpec) -> str:
    return spec.kind.value if spec.count is None else f"{spec.kind.value} of {spec.count}"


def _read_value(
    name: str, attribute: AttributeProto, spec: AttributeSpec, defects: list[Defect]
) -> AttributeValue:
    if attribute.type != _ONNX_TYPE[spec.kind]:
        got = AttributeProto.AttributeType.Name(attribute.type)
        message = f"got {attribute.name!r} of type {got}, need {_need(spec)}; it reads as empty"
        defects.append(error(name, "attribute-type", message, "write it with that type"))
        return spec.absent
    value, complaint = _decode(attribute, spec)
    if complaint:
        message = f"got {attribute.name!r} = {complaint}, need {_need(spec)}"
        defects.append(error(name, "attribute-value", message, "export the node again"))
    return value


def _decode(attribute: AttributeProto, spec: AttributeSpec) -> tuple[AttributeValue, str]:
    if spec.kind is Kind.STRING:
        try:
            return attribute.s.decode(), ""
        except UnicodeDecodeError:
            return spec.absent, "bytes that are not UTF-8"
    if spec.kind is Kind.FLOAT:
        return attribute.f, ""
    if spec.kind is Kind.FLOATS:
        return tuple(attribute.floats), ""
    if spec.kind is Kind.INTS:
        return _decode_ints(attribute.ints, spec)
    if spec.kind is Kind.FLAG:
        return bool(attribute.i), "" if attribute.i in (0, 1) else str(attribute.i)
    return attribute.i, ""


def _decode_ints(values: Sequence[int], spec: AttributeSpec) -> tuple[AttributeValue, str]:
    ints = tuple(values)
    right = spec.count is None or len(ints) == spec.count
    return (ints, "") if right else (spec.absent, str(list(ints)))
