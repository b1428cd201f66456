"""Defects of an exported file: what is wrong, at which node, and how to mend it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Defect:
    """One finding.

    Attributes:
        severity: `error` where an engine fails or computes something else, `warning` where it is
            unproven, slow or depends on the engine.
        node: node name, or `graph`, or the initializer's name.
        rule: stable identifier of the check (`weight-ranges-length`).
        message: what we got and what is needed.
        mend: what to do.
    """

    severity: Severity
    node: str
    rule: str
    message: str
    mend: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.node}: {self.message}; {self.mend} [{self.rule}]"


def error(node: str, rule: str, message: str, mend: str) -> Defect:
    """A defect that makes the file unusable or silently wrong."""
    return Defect("error", node, rule, message, mend)


def warning(node: str, rule: str, message: str, mend: str) -> Defect:
    """A finding that an engine may survive."""
    return Defect("warning", node, rule, message, mend)


def errors_of(defects: list[Defect]) -> list[Defect]:
    """The defects of severity `error`."""
    return [defect for defect in defects if defect.severity == "error"]
