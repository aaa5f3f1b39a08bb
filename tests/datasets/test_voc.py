from pathlib import Path

import pytest

from medray.config import ConfigError
from medray.datasets.scan import scan
from medray.datasets.voc import Config
from medray.types import Box, Dataset, InputError


def annotation(*objects: tuple[object, ...], size: tuple[int, int] | None = (100, 200)) -> str:
    """The .xml of objects (class, xmin, ymin, xmax, ymax, difficult) in an image of `size` (rows, columns)."""
    text = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for name, x1, y1, x2, y2, difficult in objects
    )
    given = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>" if size else ""
    return f"<annotation>{given}{text}</annotation>"


GOOD = ("cell", 2, 3, 10, 20, 0)


def write(root: Path, cases: dict[str, str | bytes], **lists: str) -> Path:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, text in cases.items():
        (root / f"JPEGImages/{name}.jpg").touch()
        (root / f"Annotations/{name}.xml").write_bytes(text if isinstance(text, bytes) else text.encode())
    for name, text in lists.items():
        (root / f"ImageSets/Main/{name}.txt").write_text(text)
    return root


def read(root: Path, *objects: tuple[object, ...], **settings: object) -> Dataset:
    return scan(Config(path=write(root, {"a": annotation(*objects)}), **settings))


def refuse(root: Path, text: str | bytes, code: str, **settings: object) -> str:
    with pytest.raises(InputError) as caught:
        scan(Config(path=write(root, {"a": text}), **settings))
    assert caught.value.code == code
    return str(caught.value)


def test_the_whole_image_and_its_first_pixels(tmp_path: Path) -> None:
    """xmin=1, xmax=W covers columns -1/2 to W - 1/2; axes are (row, column)."""
    dataset = read(tmp_path, ("cell", 1, 1, 200, 100, 0), ("dot", 1, 1, 2, 3, 1))
    assert dataset.classes == ("cell", "dot")
    assert dataset.refs[0].boxes == (
        Box((-0.5, -0.5), (99.5, 199.5), 0),
        Box((-0.5, -0.5), (2.5, 1.5), 1, ignore=True),
    )
    assert dataset.refs[0].source == tmp_path / "JPEGImages/a.jpg"


def test_boxes_that_count_from_zero(tmp_path: Path) -> None:
    whole = ("cell", 0, 0, 200, 100, 0)
    dataset = read(tmp_path, whole, first_pixel=0)
    assert dataset.refs[0].boxes == (Box((-0.5, -0.5), (99.5, 199.5), 0),)
    assert "1 pixels outside" in refuse(tmp_path, annotation(whole), "bad_box")


def test_official_lists_are_splits(tmp_path: Path) -> None:
    cases = {name: annotation(GOOD) for name in "abcd"}
    root = write(tmp_path, cases, train="b\na\n", val="c\n", trainval="a\nb\nc\n")
    dataset = scan(Config(path=root))
    assert {ref.case_id: ref.split for ref in dataset.refs} == {"a": "train", "b": "train", "c": "val"}
    assert any("left out 1 annotated images" in note for note in dataset.notes)
    (root / "ImageSets/Main/val.txt").write_text("a\n")
    with pytest.raises(InputError, match=r"split_overlap: 1 cases are in val.txt .* 'a'"):
        scan(Config(path=root))


def test_trainval_is_for_training(tmp_path: Path) -> None:
    root = write(tmp_path, {name: annotation(GOOD) for name in "ab"}, trainval="a\n", test="b\n")
    assert [ref.split for ref in scan(Config(path=root)).refs] == ["train", "test"]


def test_without_lists_all_are_used(tmp_path: Path) -> None:
    dataset = read(tmp_path, GOOD)
    assert [ref.split for ref in dataset.refs] == [None]
    assert any("no list in ImageSets" in note for note in dataset.notes)


def test_listed_cases_need_both_files(tmp_path: Path) -> None:
    root = write(tmp_path, {"a": annotation(GOOD)}, train="a\nx\n")
    with pytest.raises(InputError, match="missing_files: 1 of 2 cases have no annotations: 'x'"):
        scan(Config(path=root))
    (root / "Annotations/x.xml").write_text(annotation(GOOD))
    with pytest.raises(InputError, match="have no images: 'x'"):
        scan(Config(path=root))
    (root / "JPEGImages/a.png").touch()
    with pytest.raises(InputError, match="duplicate_case"):
        scan(Config(path=root))


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (("cell", 5, 5, 5, 9, 0), "0 pixels"),
        (("cell", 9, 5, 5, 9, 0), "-4 pixels"),
        (("cell", 1, 1, 201, 9, 0), "1 pixels outside the 100 x 200 image"),
        (("cell", 1, 0, 9, 9, 0), "1 pixels outside"),
        (("cell", "one", 1, 9, 9, 0), "no number"),
        (("cell", "nan", 1, 9, 9, 0), "no number"),
        (("cell", 1, 1, "inf", 9, 0), "no number"),
        (("cell", "", 1, 9, 9, 0), "no number"),
    ],
)
def test_bad_boxes(tmp_path: Path, bad: tuple[object, ...], says: str) -> None:
    said = refuse(tmp_path, annotation(GOOD, bad), "bad_box")
    assert says in said
    assert "1 of 2 boxes are wrong: 'a'" in said
    dataset = read(tmp_path, GOOD, bad, drop_bad_boxes=True)
    assert len(dataset.refs[0].boxes) == 1
    assert any("left out 1 boxes" in note for note in dataset.notes)


def test_size_that_nobody_gives(tmp_path: Path) -> None:
    """Without a size a box cannot be told to lie outside: a note says so."""
    text = annotation(("cell", 1, 1, 999, 9, 0), size=None)
    assert any("do not give the image's size" in note for note in scan(Config(path=write(tmp_path, {"a": text}))).notes)


def test_a_size_that_is_no_number_is_not_given(tmp_path: Path) -> None:
    text = annotation(GOOD).replace("<width>200</width>", "<width>inf</width>")
    assert scan(Config(path=write(tmp_path, {"a": text}))).refs[0].boxes


def test_classes_can_be_given(tmp_path: Path) -> None:
    dataset = read(tmp_path, GOOD, classes=("nucleus", "cell"))
    assert dataset.refs[0].boxes[0].target == 1
    assert "did you mean 'cells'" in refuse(tmp_path, annotation(GOOD), "unknown_class", classes=("cells",))


def test_subjects_from_names(tmp_path: Path) -> None:
    root = write(tmp_path, {"p1_a": annotation(GOOD), "p1_b": annotation(GOOD)})
    assert {ref.subject_id for ref in scan(Config(path=root, subject_pattern="^(p[0-9])_")).refs} == {"p1"}


BOMB = '<!DOCTYPE a [<!ENTITY x "xxxxxxxxxx"><!ENTITY y "&x;&x;&x;">]><annotation>&y;</annotation>'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOMB, "DOCTYPE"),
        (BOMB.encode("utf-16"), "DOCTYPE"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "DOCTYPE"),
        ("<annotation><object></annotation>", "no valid XML"),
        ("", "no valid XML"),
        ('<?xml version="1.0" encoding="no-such"?><annotation/>', "no valid XML"),
        (b"<annotation>\xff\xfe</annotation>", "no valid XML"),
        ("<annotation>" + " " * (4 << 20) + "</annotation>", "more than"),
    ],
)
def test_hostile_xml(tmp_path: Path, text: str | bytes, says: str) -> None:
    assert says in refuse(tmp_path, text, "broken_xml")


def test_missing_folders(tmp_path: Path) -> None:
    (tmp_path / "Annotations").mkdir()
    with pytest.raises(ConfigError, match=r"JPEGImages' does not exist; expected a folder with JPEGImages/"):
        scan(Config(path=tmp_path))


def test_real_blood_cells(shared_data: Path) -> None:
    """Two of its boxes are clicks without extent."""
    with pytest.raises(InputError, match="2 of 3943 boxes are wrong"):
        scan(Config(path=shared_data / "bccd"))
    dataset = scan(Config(path=shared_data / "bccd", drop_bad_boxes=True))
    assert len(dataset.refs) == 292
    assert dataset.classes == ("Platelets", "RBC", "WBC")
    assert sum(len(ref.boxes) for ref in dataset.refs) == 3941
    assert {ref.split for ref in dataset.refs} == {"train", "val"}
