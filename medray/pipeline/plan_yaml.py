"""A plan as an experiment file: settings with their reasons as comments, in the order of an experiment's sections."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from medray.pipeline.plan_rules import Because

WIDTH = 118


def as_yaml(head: Sequence[str], tree: Mapping[str, Any]) -> str:
    """YAML that medray.config.load takes, `head` and the reasons as comments."""
    lines = [line for paragraph in head for line in _comment(paragraph, 0)]
    return "\n".join([*lines, *_section(tree, 0)]) + "\n"


def _section(tree: Mapping[str, Any], depth: int) -> Iterator[str]:
    """The lines of a mapping; a mapping within that has no reasons is written on one line."""
    margin = "  " * depth
    for key, value in tree.items():
        if isinstance(value, Because):
            yield from _comment(value.why, depth)
            yield f"{margin}{key}: {_value(value.value)}"
        elif isinstance(value, Mapping) and (depth == 0 or any(isinstance(part, Because) for part in value.values())):
            yield f"{margin}{key}:"
            yield from _section(value, depth + 1)
        else:
            yield f"{margin}{key}: {_value(value)}"


def _comment(text: str, depth: int) -> list[str]:
    margin = "  " * depth + "# "
    # A name of a file or class may hold anything: what would end the comment is spelt out.
    clean = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
    return textwrap.wrap(clean, WIDTH, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False)


def _value(value: Any) -> str:
    """A value on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
