"""Nested settings by their dotted names, and in what two such sets differ."""

from collections.abc import Mapping
from typing import Any

Changes = dict[str, tuple[Any, Any]]
"""By name, what a setting was and what it is; None where there is none."""


def flattened(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names. Lists of groups of settings are numbered from 0, others kept whole."""
    if isinstance(tree, dict):
        nested = [(f"{prefix}.{key}" if prefix else str(key), value) for key, value in tree.items()]
    elif isinstance(tree, list) and tree and all(isinstance(value, dict) for value in tree):
        nested = [(f"{prefix}[{i}]", value) for i, value in enumerate(tree)]
    else:
        return {prefix: tree}
    return {name: value for key, below in nested for name, value in flattened(below, key).items()}


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Changes:
    """The settings that differ, sorted by name; both sets are flat."""
    names = sorted(before.keys() | after.keys())
    return {name: (before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)}


def shown(value: Any) -> str:
    """A setting's value as users are told of it."""
    return "not set" if value is None else repr(value)
