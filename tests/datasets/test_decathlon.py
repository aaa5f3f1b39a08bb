import json
from pathlib import Path

import pytest

from medray.config import ConfigError
from medray.datasets.decathlon import Config
from medray.datasets.scan import scan
from medray.types import Dataset, InputError

REAL = Path(__file__).parents[3] / "shared/data/hippocampus"
LABELS = {"0": "background", "1": "tumour"}


def write(root: Path, tree: object, files: int = 3) -> Path:
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(exist_ok=True)
        for index in range(files):
            (root / folder / f"{index}.nii.gz").touch()
    (root / "dataset.json").write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return root


def entry(index: int, label: object = None, **more: object) -> dict[str, object]:
    return {"image": f"./imagesTr/{index}.nii.gz", "label": label or f"./labelsTr/{index}.nii.gz", **more}


def read(root: Path, **tree: object) -> Dataset:
    return scan(Config(path=write(root, {"labels": LABELS, **tree})))


def test_label_maps(tmp_path: Path) -> None:
    dataset = read(tmp_path, training=[entry(0), entry(2)], test=["./imagesTs/9.nii.gz"])
    assert [ref.case_id for ref in dataset.refs] == ["imagesTr/0", "imagesTr/2"]
    assert dataset.refs[1].source == tmp_path / "imagesTr/2.nii.gz"
    assert dataset.refs[1].label_map == tmp_path / "labelsTr/2.nii.gz"
    assert dataset.refs[1].target == ()
    assert dataset.refs[1].split is None
    assert dataset.classes == ("background", "tumour")
    assert any("left out 1 test images" in note for note in dataset.notes)


@pytest.mark.parametrize("labels", [LABELS, {"background": 0, "tumour": 1}])
def test_classes_by_number_or_name(tmp_path: Path, labels: dict[str, object]) -> None:
    training = [entry(0, "tumour", subject="p"), entry(1, "0", subject=7), entry(2, 1, subject="p")]
    dataset = read(tmp_path, training=training, labels=labels)
    assert dataset.legal_values == (0, 1)
    assert [ref.target for ref in dataset.refs] == [(1,), (0,), (1,)]
    assert [ref.subject_id for ref in dataset.refs] == ["p", "7", "p"]
    assert not dataset.notes


def test_classes_without_a_list_of_names(tmp_path: Path) -> None:
    dataset = read(tmp_path, training=[entry(0, "b"), entry(1, "a")], labels=None)
    assert dataset.classes == ("a", "b")
    with pytest.raises(InputError, match="no 'labels'"):
        read(tmp_path, training=[entry(0)], labels=None)


def test_labelled_lists_are_splits(tmp_path: Path) -> None:
    dataset = read(tmp_path, training=[entry(0)], validation=[entry(1)], test=[entry(2)])
    assert [ref.split for ref in dataset.refs] == ["train", "val", "test"]


def test_mac_leftovers_are_ignored(tmp_path: Path) -> None:
    dataset = read(tmp_path, training=[entry(0), {"image": "./imagesTr/._0.nii.gz", "label": "./labelsTr/._0.nii.gz"}])
    assert len(dataset.refs) == 1
    assert any("ignored 1 hidden" in note for note in dataset.notes)


@pytest.mark.parametrize(
    "name", ["../x.nii.gz", "imagesTr/../../x.nii.gz", "/etc/x.nii.gz", "..\\x.nii.gz", "C:/x.png"]
)
def test_no_path_leads_out(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="escaping_path"):
        read(tmp_path, training=[{"image": name, "label": 1}])
    with pytest.raises(InputError, match="escaping_path"):
        read(tmp_path, training=[entry(0, name)])


@pytest.mark.parametrize(
    ("tree", "code", "says"),
    [
        ("{'training'", "broken_json", "line 1"),
        ("[" * 100_000, "broken_json", "no valid JSON"),
        ([1], "broken_json", "list, not an object"),
        ({"numTraining": 3}, "broken_json", "'numTraining'"),
        ({"training": [{"image": ["a.nii", "b.nii"]}]}, "broken_json", "training[0]"),
        ({"training": [{"image": "imagesTr/0.nii.gz"}]}, "broken_json", "no 'label'"),
        ({"training": [entry(0, "cyst")], "labels": LABELS}, "unknown_class", "'cyst'"),
        ({"training": [entry(0, [1])], "labels": LABELS}, "unknown_class", "[1]"),
        ({"training": [entry(0), entry(1, 1)], "labels": LABELS}, "mixed_targets", "1 of 2"),
        ({"training": [entry(0), entry(8), entry(9)], "labels": LABELS}, "missing_files", "2 of 3"),
        ({"training": [entry(0)], "labels": ["a"]}, "broken_json", "no object"),
        ({"training": [entry(0)], "labels": {"a": "b"}}, "broken_json", "whole numbers"),
        ({"training": [entry(0)], "labels": {"0": "b", "1": "b"}}, "broken_json", "twice"),
        ({"training": [], "labels": LABELS}, "no_cases", "no case"),
    ],
)
def test_wrong_lists(tmp_path: Path, tree: object, code: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        scan(Config(path=write(tmp_path, tree)))
    assert caught.value.code == code
    assert says in caught.value.detail


def test_missing_json(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset.json' does not exist; expected a folder with dataset.json"):
        scan(Config(path=tmp_path))


@pytest.mark.skipif(not REAL.is_dir(), reason="no real data here")
def test_real_hippocampus() -> None:
    dataset = scan(Config(path=REAL))
    assert len(dataset.refs) == 160
    assert dataset.classes == ("background", "Anterior", "Posterior")
