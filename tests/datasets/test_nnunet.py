import json
from pathlib import Path

import pytest
from layouts import refused

from medray.config import ConfigError
from medray.datasets.nnunet import Config
from medray.datasets.scan import scan
from medray.types import Dataset

TREE = {
    "channel_names": {"0": "T2"},
    "labels": {"background": 0, "core": 1},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}
TWO = {"channel_names": {"0": "T2", "1": "ADC"}}


def write(root: Path, *files: str, **tree: object) -> Path:
    for name in files or ("imagesTr/a_0000", "imagesTr/b_0000", "labelsTr/a", "labelsTr/b"):
        path = root / (name if "." in name else f"{name}.nii.gz")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (root / "dataset.json").write_text(json.dumps({**TREE, **tree}))
    return root


def refuse(root: Path, code: str, **settings: object) -> str:
    return refused(Config(path=root, **settings), code)


def test_cases_and_label_maps(tmp_path: Path) -> None:
    dataset = scan(Config(path=write(tmp_path)))
    assert [ref.case_id for ref in dataset.refs] == ["a", "b"]
    assert dataset.refs[0].source == tmp_path / "imagesTr/a_0000.nii.gz"
    assert dataset.refs[0].label_map == tmp_path / "labelsTr/a.nii.gz"
    assert dataset.refs[0].split is None
    assert dataset.classes == ("background", "core")


def test_a_labelled_test_set(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, "imagesTs/c_0000")
    assert any("left out 1 files of imagesTs" in note for note in scan(Config(path=tmp_path)).notes)
    write(tmp_path, "labelsTs/c")
    assert {ref.case_id: ref.split for ref in scan(Config(path=tmp_path)).refs} == {
        "a": "train",
        "b": "train",
        "c": "test",
    }
    write(tmp_path, "imagesTs/a_0000", "labelsTs/a")
    assert "'a'" in refuse(tmp_path, "duplicate_case")


def test_one_of_several_channels(tmp_path: Path) -> None:
    files = [f"imagesTr/{case}_000{number}" for case in "ab" for number in (0, 1)]
    write(tmp_path, *files, "labelsTr/a", "labelsTr/b", **TWO)
    assert "2 of 2 cases have several files" in refuse(tmp_path, "multi_channel")
    for channel in ("1", "ADC"):
        dataset: Dataset = scan(Config(path=tmp_path, channel=channel))
        assert [ref.source for ref in dataset.refs] == [tmp_path / f"imagesTr/{case}_0001.nii.gz" for case in "ab"]
    assert "did you mean 'ADC'" in refuse(tmp_path, "missing_channel", channel="ADCs")
    (tmp_path / "imagesTr/b_0001.nii.gz").unlink()
    assert "1 of 2 cases have no file _0001.nii.gz: 'b'" in refuse(tmp_path, "missing_channel", channel="1")


def test_colour_in_one_file_is_one_channel(tmp_path: Path) -> None:
    """2D PNG: three channel names, one file (documentation/dataset_format.md)."""
    names = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "file_ending": ".png", "numTraining": 1}
    assert len(scan(Config(path=write(tmp_path, "imagesTr/a_0000.png", "labelsTr/a.png", **names))).refs) == 1


def test_the_label_to_ignore(tmp_path: Path) -> None:
    dataset = scan(Config(path=write(tmp_path, labels={"background": 0, "core": 1, "ignore": 2})))
    assert dataset.classes == ("background", "core")
    assert dataset.legal_values == (0, 1, 2)
    assert any("label value 2 ('ignore')" in note for note in dataset.notes)


@pytest.mark.parametrize(
    ("tree", "code", "says"),
    [
        ({"labels": {"background": 0, "whole": [1, 2]}}, "region_labels", "1 of 2 labels"),
        ({"labels": {"background": 0, "core": 2}}, "broken_json", "'0', '2'"),
        ({"labels": {"background": 0}}, "broken_json", "'0'"),
        ({"labels": {"background": 0, "ignore": 1, "core": 2}}, "broken_json", "'ignore' has the value 1"),
        ({"labels": []}, "broken_json", "no valid 'labels'"),
        ({"channel_names": None, "modality": {}, "training": []}, "broken_json", "version 1"),
        ({"file_ending": ".mha"}, "unsupported_type", ".mha"),
        ({"dataset": {}}, "unsupported_type", "'dataset'"),
        ({"numTraining": 3}, "case_count", "2 cases"),
    ],
)
def test_wrong_descriptions(tmp_path: Path, tree: dict[str, object], code: str, says: str) -> None:
    assert says in refuse(write(tmp_path, **tree), code)


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset.json' does not exist"):
        scan(Config(path=tmp_path))
    write(tmp_path)
    (tmp_path / "imagesTr/notes.nii.gz").touch()
    dataset = scan(Config(path=tmp_path, subject_pattern="(.)"))
    assert any("1 not named CASE_0000.nii.gz" in note for note in dataset.notes)
    assert [ref.subject_id for ref in dataset.refs] == ["a", "b"]
    (tmp_path / "labelsTr/b.nii.gz").rename(tmp_path / "labelsTr/c.nii.gz")
    said = refuse(tmp_path, "missing_partner")
    assert "1 images without a mask: 'b'; 1 masks without an image: 'c'" in said
