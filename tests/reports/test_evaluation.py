"""The page of an evaluation: safe whatever classes are called, alone in the world; the card as Markdown; figures."""

from __future__ import annotations

import re
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from test_page import EVIL, Tags, picture

from medray.reports import discrimination
from medray.reports.discrimination import Line, Mark
from medray.reports.evaluation import Alert, Bar, CardPart, Page, Row, Section, Table, as_markdown, render
from medray.reports.page import Picture, Sheet


def page(word: str = "zebra") -> Page:
    """A page whose every text is `word`."""
    table = Table(
        (word, word),
        (Row((word, word), Bar(0.5, 0.2, 0.9), word), Row((word, "2"))),
        title=word,
        note=word,
        reference=0.4,
    )
    section = Section(
        word, (word,), (table,), (Picture(picture(), word, word),), (Sheet(word, (Picture(picture(), word, word),)),)
    )
    card = (CardPart(word, (word,), ((word, word),), ((word, word),)),)
    return Page(word, word, word, True, (Alert(word, True),), word, word, ((word, word),), (section,), card)


def test_everything_is_on_it_and_nothing_of_it_is_markup() -> None:
    plain, evil = Tags(render(page())), Tags(render(page(EVIL)))
    assert [tag for tag, _ in plain.tags] == [tag for tag, _ in evil.tags]
    assert plain.text.count("zebra") == 30
    assert evil.text.count(EVIL) == 30
    assert "script" not in [tag for tag, _ in evil.tags]
    assert not any(name.startswith("on") for _, attributes in evil.tags for name in attributes)


def test_it_loads_nothing_and_says_so_to_the_browser() -> None:
    html = render(page())
    assert not re.search(r"https?:|url\(|@import|[\"']//", html)
    policy = next(
        attributes["content"] for tag, attributes in Tags(html).tags if tag == "meta" and "content" in attributes
    )
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    sources = [attributes["src"] or "" for tag, attributes in Tags(html).tags if tag == "img"]
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)


@pytest.mark.parametrize(("sound", "kind"), [(True, "verdict sound"), (False, "verdict unsound")])
def test_figures_that_flatter_do_not_look_sound(sound: bool, kind: str) -> None:
    assert ("p", {"class": kind}) in Tags(render(replace(page(), sound=sound))).tags


def test_a_bar_is_drawn_to_scale_and_never_beyond_its_ends() -> None:
    table = Table(("a",), (Row(("a",), Bar(0.0, -5.0, 5.0)),), domain=(-1.0, 1.0), reference=0.0)
    assert table.place(-1) == table.place(-5) == 5
    assert table.place(0) == 100
    assert table.place(1) == table.place(9) == 195
    tags = Tags(render(replace(page(), sections=(Section("s", tables=(table,)),)))).tags
    assert [attributes["cx"] for tag, attributes in tags if tag == "circle"] == ["100.0"]


def test_what_is_not_defined_has_no_bar() -> None:
    nan = float("nan")
    for bar in (None, Bar(nan, nan, nan)):
        table = Table(("a",), (Row(("a",), bar), Row(("b",), Bar(0.1, nan, nan))))
        tags = Tags(render(replace(page(), sections=(Section("s", tables=(table,)),)))).tags
        assert [tag for tag, _ in tags].count("svg") == 1


def test_the_card_is_markdown_in_which_names_are_text() -> None:
    text = as_markdown(
        "Card of <b>", (CardPart("Use | *all*", ("[x](y)\n# not",), (("a_b", "`c`"),), (("f|g", "1"),)),)
    )
    assert text.splitlines()[0] == "# Card of \\<b\\>"
    assert "## Use \\| \\*all\\*" in text
    assert "\\[x\\](y) \\# not" in text
    assert "* a\\_b: \\`c\\`" in text
    assert "| f\\|g | 1 |" in text
    assert text.endswith("|\n")


def decoded(png: bytes) -> tuple[int, int]:
    return Image.open(BytesIO(png)).size


def test_figures_of_any_data_are_drawn() -> None:
    draw = np.random.default_rng(0)
    scores, positive = draw.random(40), draw.random(40) > 0.5
    lines = [Line("$a_b$", scores, positive), Line("gone", scores, np.zeros(40, bool))]
    marks = [Mark(0, "rule", 3, 4, 5, 6), Mark(1, "nothing", 0, 0, 0, 0)]
    for curve in (discrimination.roc, discrimination.precision_recall):
        width, height = decoded(curve(lines, marks))
        assert width > height > 200
        assert curve(lines, marks) == curve(lines, marks), "the same arrays are the same bytes"
    decoded(discrimination.distribution([("liver", scores), ("none", np.full(3, np.nan))], "Dice", (0, 1)))
    decoded(discrimination.agreement(scores, scores + 1, "age", (1.0, 0.9, 1.1)))
