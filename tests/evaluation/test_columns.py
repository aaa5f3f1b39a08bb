"""Columns to slice by: joined to cases by their names, numbers in bands."""

from __future__ import annotations

from pathlib import Path

import pytest

from medray.config import ConfigError
from medray.evaluation.columns import banded, pick, read_columns
from medray.types import CaseRef

REFS = tuple(CaseRef(f"scans/{name}.png", Path(f"{name}.png"), subject_id=f"p{name}") for name in "abc")


def written(folder: Path, text: str) -> Path:
    file = folder / "columns.csv"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    "text",
    [
        "case,site\nscans/c.png,Z\nscans/a.png,X\n",
        "image;site\nc.png;Z\na.png;X\nnobody.png;Q\n",
        "site,patient\nZ,pc\nX,pa\n",
        "path,site,subject\nelsewhere/1.png,Z,pc\nelsewhere/2.png,X,pa\n",
    ],
    ids=["whole names", "last parts", "subjects", "subjects where no case fits"],
)
def test_rows_find_their_cases(tmp_path: Path, text: str) -> None:
    assert read_columns(written(tmp_path, text), REFS)["site"] == ("X", "", "Z")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,site\na.png,X\n", "no column of cases"),
        ("case,site\nother.png,X\n", "none of the 3 cases"),
        ("case,site\na.png,X\na.png,Y\n", "1 cases have several rows: 'a.png'"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_columns(written(tmp_path, text), REFS)


def test_a_table_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read_columns(Path("nowhere.csv"), REFS)


def test_a_column_that_is_not_there_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no column 'sx'; did you mean 'sex'.*there are: sex"):
        pick({"sex": ("F",)}, ["sx"])


def test_ages_and_other_numbers_are_cut_into_bands() -> None:
    ages = tuple(map(str, range(5, 95, 5)))
    assert sorted(set(banded("age_years", ages))) == ["0 to 17", "18 to 39", "40 to 64", "65 to 79", "80 or more"]
    doses = banded("dose", (*map(str, range(100)), ""))
    assert doses[-1] == ""
    assert [doses.count(name) for name in dict.fromkeys(doses[:-1])] == [25, 25, 25, 25]
    assert doses[0] == "< 24.75"


def test_few_numbers_and_words_stay_as_they_are() -> None:
    assert banded("tesla", ("1.5", "3", "1.5")) == ("1.5", "3", "1.5")
    assert banded("site", tuple("abcdefghijklmn")) == tuple("abcdefghijklmn")
