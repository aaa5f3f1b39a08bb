"""k-anonymity and l-diversity: the papers' own examples, and what any table must obey."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medray import cli
from medray.console import answer
from medray.metrics.anonymity import groups, k_anonymity, l_diversity, smallest_groups

# Machanavajjhala et al. 2007, tables 2 (4-anonymous, one group all cancer) and 3 (3-diverse).
FOUR_ANONYMOUS = [
    *[{"zip": "130**", "age": "<30", "disease": d} for d in ("heart", "heart", "viral", "viral")],
    *[{"zip": "1485*", "age": ">=40", "disease": d} for d in ("cancer", "heart", "viral", "viral")],
    *[{"zip": "130**", "age": "3*", "disease": "cancer"} for _ in range(4)],
]
THREE_DIVERSE = [
    *[{"zip": "1305*", "age": "<=40", "disease": d} for d in ("heart", "viral", "cancer", "cancer")],
    *[{"zip": "1485*", "age": ">40", "disease": d} for d in ("cancer", "heart", "viral", "viral")],
    *[{"zip": "1306*", "age": "<=40", "disease": d} for d in ("heart", "viral", "cancer", "cancer")],
]
QUASI = ["zip", "age"]


def test_the_paper() -> None:
    assert (k_anonymity(FOUR_ANONYMOUS, QUASI), l_diversity(FOUR_ANONYMOUS, QUASI, "disease")) == (4, 1)
    assert (k_anonymity(THREE_DIVERSE, QUASI), l_diversity(THREE_DIVERSE, QUASI, "disease")) == (4, 3)


def test_who_is_at_risk() -> None:
    table = [*FOUR_ANONYMOUS, {"zip": "99", "age": "90+", "disease": "gout"}]
    assert k_anonymity(table, QUASI) == 1
    (group,) = smallest_groups(table, QUASI, k=4)
    assert (group.values, group.rows) == (("99", "90+"), (12,))
    assert smallest_groups(FOUR_ANONYMOUS, QUASI, k=4) == []
    assert len(smallest_groups(FOUR_ANONYMOUS, QUASI, k=5)) == 3


def test_edges() -> None:
    assert (k_anonymity([], QUASI), l_diversity([], QUASI, "disease")) == (0, 0)
    assert k_anonymity(FOUR_ANONYMOUS, []) == 12, "who knows nothing sees one group"
    with pytest.raises(KeyError):
        k_anonymity(FOUR_ANONYMOUS, ["site"])


rows = st.lists(st.fixed_dictionaries({name: st.sampled_from("abc") for name in ("x", "y", "z")}), min_size=1)


@given(rows)
def test_knowing_more_never_hides_better(table: list[dict[str, str]]) -> None:
    assert k_anonymity(table, ["x", "y"]) <= k_anonymity(table, ["x"])
    assert 1 <= l_diversity(table, ["x"], "z") <= k_anonymity(table, ["x"]) or len(groups(table, ["x"])) > 1
    assert sorted(row for group in groups(table, ["x", "y"]) for row in group.rows) == list(range(len(table)))


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "metadata.csv"
    lines = [",".join(row.values()) for row in FOUR_ANONYMOUS]
    file.write_text("zip,age,disease\n" + "\n".join([*lines, "99,90+,gout"]) + "\n")
    stdout = io.StringIO()
    asked = ["anonymity", str(file), "--quasi", "zip,age", "--sensitive", "disease", "--k", "4"]
    assert answer(cli.app, asked, stdout) == 3
    assert json.loads(stdout.getvalue()) == {"rows": 13, "k": 1, "groups_below": 1, "rows_at_risk": 1, "l": 1}
    assert "line 14" in capsys.readouterr().err
    file.write_text("zip,age,disease\n" + "\n".join(lines) + "\n")
    assert answer(cli.app, asked, io.StringIO()) == 0
    assert answer(cli.app, ["anonymity", str(file), "--quasi", "site"], io.StringIO()) == 2
    assert "site" in capsys.readouterr().err
    file.write_text("zip,age,disease\n")
    assert answer(cli.app, asked, io.StringIO()) == 2
    assert answer(cli.app, ["anonymity", str(tmp_path / "no.csv"), "--quasi", "zip"], io.StringIO()) == 2
