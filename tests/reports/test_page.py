"""The page of a check: safe whatever files are called, alone in the world, and small."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from medray.reports import census
from medray.reports.page import MAX_BYTES, Entry, Page, Picture, Sheet, render
from medray.reports.tiles import GAP_PX, OUTLINES, colour_of, tile

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"


class Tags(HTMLParser):
    """What a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def picture(size: int = 8) -> bytes:
    return tile([np.zeros((size, size), np.uint8)], [np.zeros((size, size), np.uint8)])


def page(**fields: object) -> Page:
    entry = Entry("error", "truncated", "it ends early", "copy it again", (("a/b.png", "like c"),))
    sheet = Sheet("Class a", (Picture(picture(), "a/b.png", "train"),), (("organ", "#E69F00"),))
    figures = (Picture(picture(), "Cases of each class"),)
    facts = (("cases", "60"),)
    usual = Page("set", "Ready to train", True, "medray train", facts, (entry,), figures, (sheet,), ("a note",))
    return replace(usual, **fields)  # type: ignore[arg-type]


def test_all_that_it_is_given_is_on_it() -> None:
    seen = Tags(render(page()))
    for words in (
        ["set", "Ready to train", "medray train", "cases", "60", "truncated", "it ends early", "copy it again"],
        ["a/b.png", "like c", "Class a", "organ", "train", "a note", "Cases of each class", "1 case"],
    ):
        for word in words:
            assert word in seen.text
    assert [tag for tag, _ in seen.tags].count("img") == 2
    assert ("p", {"class": "verdict ready"}) in seen.tags
    assert "Nothing." in Tags(render(page(entries=()))).text


def test_names_are_text_whatever_they_are() -> None:
    entry = Entry("warning", EVIL, EVIL, EVIL, ((EVIL, EVIL),))
    sheet = Sheet(EVIL, (Picture(picture(), EVIL, EVIL),), ((EVIL, "#E69F00"),))
    fields = {"title": EVIL, "verdict": EVIL, "next": EVIL, "facts": ((EVIL, EVIL),), "notes": (EVIL,)}
    html = render(page(**fields, entries=(entry,), figures=(Picture(picture(), EVIL),), sheets=(sheet,)))
    seen = Tags(html)
    assert not {"script", "iframe", "object", "link", "form"} & {tag for tag, _ in seen.tags}
    assert not any(name.startswith("on") for _, attributes in seen.tags for name in attributes)
    assert [tag for tag, _ in seen.tags].count("img") == 2
    # Title twice, verdict, next, fact 2, finding 5, note, figure, sheet, legend, picture 2.
    assert seen.text.count(EVIL) == 17


def test_it_needs_nothing_from_elsewhere() -> None:
    html = render(page())
    seen = Tags(html)
    policy = next(attributes["content"] for tag, attributes in seen.tags if attributes.get("http-equiv"))
    assert policy
    assert policy.startswith("default-src 'none'; img-src data:;")
    links = {"src", "href", "srcset", "data", "action", "poster"}
    sources = [attributes[name] or "" for _, attributes in seen.tags for name in links & attributes.keys()]
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"https?://|url\(|@import", html)
    first = base64.b64decode(sources[0].partition(",")[2])
    assert Image.open(BytesIO(first)).size == (8, 8)


def test_it_stays_small() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    large = Picture(tile([noise], [np.zeros((300, 300), np.uint8)]), "x")
    ids = tuple((f"{number} " + "long/" * 400, "y" * 9999) for number in range(5000))
    html = render(page(entries=(Entry("error", "a", "b", "c", ids),) * 3, sheets=(Sheet("Many", (large,) * 40),)))
    assert len(html.encode()) < MAX_BYTES
    seen = Tags(html)
    shown = [tag for tag, _ in seen.tags].count("img") - 1
    assert 5 < shown < 40
    assert f"{40 - shown} pictures are left out" in seen.text
    assert "and 4900 more, in check.csv" in seen.text


def test_a_tile_shows_planes_with_outlines() -> None:
    planes = [np.full((10, 20), 255, np.uint8), np.zeros((20, 4), np.uint8)]
    outlines = [np.zeros((10, 20), np.uint8), np.zeros((20, 4), np.uint8)]
    outlines[0][2, 3], outlines[0][4, 5] = 1, 8
    found = np.asarray(Image.open(BytesIO(tile(planes, outlines))).convert("RGB"))
    assert found.shape == (20, 20 + GAP_PX + 4, 3)
    assert found[5:15, :20].max() == 255
    assert found[:5].max() == 0, "a low plane lies in the middle"
    assert bytes(found[5 + 2, 3]).hex().upper() == colour_of(1)[1:]
    assert bytes(found[5 + 4, 5]).hex().upper() == colour_of(2)[1:] == OUTLINES[1][1:], "colours come again"
    colour = np.random.default_rng(0).integers(0, 255, (10, 20, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(BytesIO(tile([colour], [np.zeros((10, 20), np.uint8)])))), colour)


@pytest.mark.parametrize("spread", [1.0, 1e5])
def test_figures_are_pictures(spread: float) -> None:
    draw = np.random.default_rng(0)
    low, high = draw.uniform(0, 1, 30), np.append(draw.uniform(90, 110, 29), 100 * spread)
    names = ("a" * 60, "$b$", "<c>")
    for png in (
        census.class_bars({"train": [5, 0, 2], "test": [1, 1, 0]}, names),
        census.class_bars({"": list(range(50))}, [str(number) for number in range(50)]),
        census.edges(draw.integers(10, 20, (30, 2)), None, "px"),
        census.edges(draw.integers(10, 20, (30, 3)), np.ones((30, 3)), "mm"),
        census.edges(np.geomspace(1, spread * 100, 30)[:, None].repeat(3, 1), None, "px"),
        census.intensities(low, (low + high) / 2, high),
        census.label_volumes(draw.integers(0, 1000, (30, 3)), names),
    ):
        width, height = Image.open(BytesIO(png)).size
        assert 200 < width < 1500
        assert 80 < height < 1800
