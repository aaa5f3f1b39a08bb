"""How well a table of metadata hides its people: k-anonymity and l-diversity.

Sources: Sweeney 2002, doi 10.1142/S0218488502001648 (k); Machanavajjhala et al. 2007, doi 10.1145/1217299.1217302
(l, here distinct l-diversity).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Table = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Group:
    """People who look alike in the quasi-identifiers."""

    values: tuple[str, ...]
    rows: tuple[int, ...]
    """Rows of the table, from 0."""


def k_anonymity(table: Table, quasi: Sequence[str]) -> int:
    """The size of the smallest group of rows that agree in all quasi-identifiers; 0 for an empty table.

    Raises KeyError for a column that the table does not have.
    """
    return min((len(group.rows) for group in groups(table, quasi)), default=0)


def l_diversity(table: Table, quasi: Sequence[str], sensitive: str) -> int:
    """The fewest different values of `sensitive` in any such group; 0 for an empty table.

    With l = 1 a group tells the value of all its people, however large it is. Raises KeyError as k_anonymity does.
    """
    return min((len({table[row][sensitive] for row in group.rows}) for group in groups(table, quasi)), default=0)


def smallest_groups(table: Table, quasi: Sequence[str], k: int) -> list[Group]:
    """The groups with fewer than `k` rows, the smallest first: whom to generalise or leave out."""
    return [group for group in groups(table, quasi) if len(group.rows) < k]


def groups(table: Table, quasi: Sequence[str]) -> list[Group]:
    """All groups, the smallest first; an empty cell is a value like any other."""
    found: dict[tuple[str, ...], list[int]] = {}
    for row, cells in enumerate(table):
        found.setdefault(tuple(cells[name] for name in quasi), []).append(row)
    return sorted((Group(values, tuple(rows)) for values, rows in found.items()), key=lambda group: len(group.rows))
