import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medray.config import ConfigError
from medray.datasets.boxes import Boxed, check_boxes
from medray.datasets.coco import Config
from medray.datasets.scan import scan
from medray.types import Box, Dataset, InputError

CATEGORIES = [{"id": 7, "name": "tumour"}, {"id": 2, "name": "cyst"}]
IMAGE = {"id": 1, "file_name": "a.png", "width": 200, "height": 100}


def item(bbox: object, category: object = 2, image: object = 1, **more: object) -> dict[str, object]:
    return {"image_id": image, "category_id": category, "bbox": bbox, **more}


def tree(*annotations: object, images: object = (IMAGE,), categories: object = CATEGORIES) -> dict[str, Any]:
    return {"images": images, "annotations": annotations, "categories": categories}


def write(file: Path, content: object, folder: str = "") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    place = file.parent / folder
    place.mkdir(parents=True, exist_ok=True)
    (place / "a.png").touch()
    return file


def read(root: Path, *annotations: object, **settings: object) -> Dataset:
    return scan(Config(path=write(root / "x.json", tree(*annotations)), **settings))


def test_the_whole_image(tmp_path: Path) -> None:
    """x=0, w=W covers columns -1/2 to W - 1/2; axes are (row, column); classes are in the order of their ids."""
    dataset = read(tmp_path, item([0, 0, 200, 100]), item([10, 20, 1.5, 3], 7, iscrowd=1))
    assert dataset.classes == ("cyst", "tumour")
    assert dataset.refs[0].boxes == (
        Box((-0.5, -0.5), (99.5, 199.5), 0),
        Box((19.5, 9.5), (22.5, 11.0), 1, ignore=True),
    )
    assert dataset.refs[0].case_id == "a.png"
    assert dataset.refs[0].source == tmp_path / "a.png"


def test_an_image_without_objects_is_a_case(tmp_path: Path) -> None:
    assert read(tmp_path).refs[0].boxes == ()


@pytest.mark.parametrize("folder", ["", "images", "x", "images/x", "../images", "../x", "..", "../images/x"])
def test_images_are_found_in_usual_folders(tmp_path: Path, folder: str) -> None:
    file = write(tmp_path / "annotations/instances_x.json", tree(), folder)
    assert scan(Config(path=file)).refs[0].source.is_file()


def test_the_folder_of_images_can_be_given(tmp_path: Path) -> None:
    file = write(tmp_path / "x.json", tree(), "far/away")
    with pytest.raises(InputError, match=r"missing_files: 1 of 1 images do not exist: 'a.png'"):
        scan(Config(path=file))
    assert len(scan(Config(path=file, images=tmp_path / "far/away")).refs) == 1


def test_files_of_several_splits(tmp_path: Path) -> None:
    write(tmp_path / "annotations/instances_train2017.json", tree(item([1, 1, 5, 5])), "../train2017")
    write(tmp_path / "annotations/instances_val2017.json", tree(), "../val2017")
    (tmp_path / "annotations/captions_val2017.json").write_text("{}")
    dataset = scan(Config(path=tmp_path))
    assert [(ref.case_id, ref.split) for ref in dataset.refs] == [("train/a.png", "train"), ("val/a.png", "val")]
    assert dataset.refs[1].source == tmp_path / "val2017/a.png"
    write(tmp_path / "annotations/instances_extra.json", tree())
    with pytest.raises(ConfigError, match=r"'instances_extra.json' names no split"):
        scan(Config(path=tmp_path))


def test_a_folder_per_split(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        write(tmp_path / split / "_annotations.coco.json", tree())
    assert [ref.split for ref in scan(Config(path=tmp_path)).refs] == ["train", "val"]


def test_splits_have_the_same_classes(tmp_path: Path) -> None:
    write(tmp_path / "train.json", tree())
    write(tmp_path / "val.json", tree(categories=CATEGORIES[:1]))
    with pytest.raises(InputError, match="mixed_classes"):
        scan(Config(path=tmp_path))


def test_subjects_from_names(tmp_path: Path) -> None:
    assert read(tmp_path, subject_pattern="^(.)[.]").refs[0].subject_id == "a"


@pytest.mark.parametrize(
    ("bbox", "says"),
    [
        ([1, 1, 0, 5], "5 x 0 pixels"),
        ([1, 1, -2, 5], "5 x -2 pixels"),
        ([0, 0, 201, 5], "1 pixels outside the 100 x 200 image"),
        ([-0.5, 0, 5, 5], "0.5 pixels outside"),
        ([1, 1, 5], "no number"),
        ([1, 1, "5", 5], "no number"),
        ([1, 1, float("nan"), 5], "no number"),
        (None, "no number"),
    ],
)
def test_bad_boxes(tmp_path: Path, bbox: object, says: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, item(bbox), item([1, 1, 5, 5]))
    assert caught.value.code == "bad_box"
    assert says in caught.value.detail
    assert len(read(tmp_path, item(bbox), item([1, 1, 5, 5]), drop_bad_boxes=True).refs[0].boxes) == 1


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        ([], "broken_json", "list, not an object"),
        ({"images": []}, "broken_json", "no list 'annotations'"),
        (tree(images=[{"id": 1}]), "broken_json", "images[0]"),
        (tree(images=[IMAGE, IMAGE]), "broken_json", "an id twice"),
        (tree(images=[{**IMAGE, "file_name": "../a.png"}]), "escaping_path", "leads out"),
        (tree(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]), "broken_json", "twice"),
        (tree(categories=[{"id": "1", "name": "a"}]), "broken_json", "whole number"),
        (tree(item([1, 1, 5, 5], category=3)), "unknown_class", "category 3"),
        (tree(item([1, 1, 5, 5], image=9)), "unknown_image", "image 9"),
        (tree(item([1, 1, 5, 5], image=[1])), "unknown_image", "image [1]"),
    ],
)
def test_wrong_files(tmp_path: Path, content: object, code: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        scan(Config(path=write(tmp_path / "x.json", content)))
    assert caught.value.code == code
    assert says in caught.value.detail


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no JSON file"):
        scan(Config(path=tmp_path))


numbers = st.floats(-5, 105, allow_nan=False)


@given(low=st.tuples(numbers, numbers), high=st.tuples(numbers, numbers))
def test_what_passes_lies_in_its_image(low: tuple[float, float], high: tuple[float, float]) -> None:
    """Each box is kept or refused; what is kept has an extent and lies on the image, moved by rounding at most."""
    case = Boxed("a", (100, 50), [Box(low, high, 0)])
    (kept,), _ = check_boxes([case], drop=True)
    for box in kept:
        assert all(face >= -0.5 for face in box.low)
        assert all(face <= edge - 0.5 for face, edge in zip(box.high, (100, 50), strict=True))
        assert all(a < b for a, b in zip(box.low, box.high, strict=True))
        assert max(abs(a - b) for a, b in zip((*box.low, *box.high), (*low, *high), strict=True)) <= 0.0101
    if not kept:
        with pytest.raises(InputError, match="bad_box"):
            check_boxes([case], drop=False)
