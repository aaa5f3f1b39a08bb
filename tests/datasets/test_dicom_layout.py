"""Which series of a tree are cases, and which label is theirs."""

from __future__ import annotations

from pathlib import Path

import pytest
from dicom_tree import REPORT, label_map, save, series, tags
from pydantic import ValidationError

from medray.config import ConfigError
from medray.datasets.dicom import Config
from medray.datasets.scan import scan
from medray.imaging.reader import read as read_image
from medray.types import CaseRef, Dataset, InputError, SeriesRef


def read(root: Path, table: str = "", **settings: object) -> Dataset:
    if table:
        (root / "labels.csv").write_text(table)
        settings["labels"] = root / "labels.csv"
    return scan(Config(path=root, **settings))


def refuse(root: Path, code: str, table: str = "", **settings: object) -> str:
    with pytest.raises(InputError) as caught:
        read(root, table, **settings)
    assert caught.value.code == code
    return str(caught.value)


def source(ref: CaseRef) -> SeriesRef:
    assert isinstance(ref.source, SeriesRef)
    return ref.source


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two patients with a study of two series each."""
    for patient, study in (("p", "1.1"), ("q", "1.2")):
        series(tmp_path / patient / "thin", f"{study}.3", patient, study, slices=3, SeriesDescription="Thin LUNG")
        series(tmp_path / patient / "thick", f"{study}.4", patient, study, SeriesDescription="thick")
    return tmp_path


def test_all_series_without_labels(tree: Path) -> None:
    dataset = read(tree)
    assert [ref.case_id for ref in dataset.refs] == ["1.1.4", "1.1.3", "1.2.4", "1.2.3"]
    assert [ref.subject_id for ref in dataset.refs] == ["p", "p", "q", "q"]
    assert source(dataset.refs[1]).files == tuple(tree / f"p/thin/IM000{n}" for n in range(3))
    assert not any(ref.target for ref in dataset.refs)
    assert dataset.classes == dataset.notes == ()


@pytest.mark.parametrize(
    ("rules", "kept", "note"),
    [
        ({"description": "lung"}, ["1.1.3", "1.2.3"], "2 series of another description"),
        ({"min_slices": 3}, ["1.1.3", "1.2.3"], "2 series of fewer than 3 slices"),
        ({"modality": "CT"}, ["1.1.4", "1.1.3", "1.2.4", "1.2.3"], ""),
    ],
)
def test_rules_choose_series(tree: Path, rules: dict[str, object], kept: list[str], note: str) -> None:
    dataset = read(tree, series=rules)
    assert [ref.case_id for ref in dataset.refs] == kept
    assert note in "".join(dataset.notes)


def test_no_series_is_left(tree: Path) -> None:
    assert "4 series of another modality" in refuse(tree, "no_cases", series={"modality": "MR"})
    with pytest.raises(ValidationError, match="regular expression"):
        Config(path=tree, series={"description": "("})


@pytest.mark.parametrize(
    "table",
    [
        "SeriesInstanceUID,label\n1.1.3,a\n1.2.3,b\n",
        "study_uid,series_uid,label\n1.1,1.1.3,a\n1.1,1.2.3,b\n",
        "folder,label\np/thin,a\nq\\thin\\,b\n",
    ],
)
def test_a_row_for_each_series(tree: Path, table: str) -> None:
    dataset = read(tree, table)
    assert [(ref.case_id, ref.target) for ref in dataset.refs] == [("1.1.3", (0,)), ("1.2.3", (1,))]
    assert dataset.classes == ("a", "b")
    assert "left out: 2 series not in the table of labels" in dataset.notes


@pytest.mark.parametrize(
    "table",
    ["patient_id,label\np,a\nq,b\n", "StudyInstanceUID,label\n1.1,a\n1.2,b\n", "folder,label\np,a\nq,b\n"],
)
def test_a_row_for_several_series(tree: Path, table: str) -> None:
    """Which of a patient's series a label means must be said."""
    said = refuse(tree, "ambiguous_series", table)
    assert "2 of 2 rows of the table have several series, the first one CT of 2 files, CT of 3 files" in said
    one = read(tree, table, series={"min_slices": 3})
    assert [(ref.case_id, ref.target) for ref in one.refs] == [("1.1.3", (0,)), ("1.2.3", (1,))]
    assert len(read(tree, table, series={"one_per": "none"}).refs) == 4


@pytest.mark.parametrize(("one_per", "what"), [("study", "2 of 2 studies"), ("patient", "2 of 2 patients")])
def test_one_series_per_study_or_patient(tree: Path, one_per: str, what: str) -> None:
    assert what in refuse(tree, "ambiguous_series", series={"one_per": one_per})
    assert len(read(tree, series={"one_per": one_per, "description": "thick"}).refs) == 2


def test_studies_of_one_patient(tmp_path: Path) -> None:
    series(tmp_path / "a", "1.3", study="1.1")
    series(tmp_path / "b", "1.4", study="1.2")
    assert len(read(tmp_path, series={"one_per": "study"}).refs) == 2
    refuse(tmp_path, "ambiguous_series", series={"one_per": "patient"})


def test_the_table_says_more(tree: Path) -> None:
    """Split, weight, multi-label and columns by name, as in dataset: table."""
    table = "uid,finding,fold,w\n1.1.3,a|b,train,2\n1.2.3,,test,1\n"
    names = {"series_column": "uid", "label_column": "finding", "split_column": "fold", "weight_column": "w"}
    dataset = read(tree, table, **names)
    assert [(ref.target, ref.split, ref.weight) for ref in dataset.refs] == [((0, 1), "train", 2.0), ((), "test", 1.0)]
    assert dataset.multilabel


@pytest.mark.parametrize("role", ["study", "folder", "patient"])
def test_key_columns_by_name(tree: Path, role: str) -> None:
    value = {"study": "1.{}", "folder": "{}/thin", "patient": "{}"}[role]
    cells = [value.format(number if role == "study" else name) for number, name in ((1, "p"), (2, "q"))]
    table = f"series,key,label\nx,{cells[0]},a\ny,{cells[1]},b\n"
    dataset = read(tree, table, series={"min_slices": 3}, **{f"{role}_column": "key"})
    assert [ref.target for ref in dataset.refs] == [(0,), (1,)]


def test_wrong_tables(tree: Path) -> None:
    said = refuse(tree, "missing_series", "series_uid,label\n1.1.3,a\n9.9,b\n")
    assert "lines 3" in said
    assert "9.9" not in said
    refuse(tree, "broken_table", "patient,label\np,a\np,b\nq,b\n")
    with pytest.raises(ConfigError, match=r"no column series, study, folder or patient; labels.csv has: name, label"):
        read(tree, "name,label\np,a\n")
    with pytest.raises(ConfigError, match="does not exist"):
        read(tree, labels=tree / "no.csv")


@pytest.mark.parametrize("modality", ["SEG", "RTSTRUCT"])
def test_label_maps(tree: Path, modality: str) -> None:
    """Only what has a label map is a case."""
    mask = label_map(tree / "masks/1", "1.2.3", "1.9", modality)
    dataset = read(tree, classes=("background", "lung"))
    assert [(ref.case_id, ref.label_map) for ref in dataset.refs] == [("1.2.3", mask)]
    assert dataset.classes == ("background", "lung")
    assert dataset.notes == ("left out: 3 series without a SEG or RTSTRUCT",)
    label_map(tree / "masks/2", "1.2.3", "1.8", "RTSTRUCT" if modality == "SEG" else "SEG")
    refuse(tree, "ambiguous_label")
    assert [ref.label_map for ref in read(tree, label_maps=modality).refs] == [mask]


def test_label_maps_beside_a_table(tree: Path) -> None:
    label_map(tree / "mask", "1.1.3", "1.9")
    dataset = read(tree, "series,label\n1.1.3,a\n1.2.3,b\n")
    assert [(ref.target, ref.label_map) for ref in dataset.refs] == [((0,), None), ((1,), None)]
    assert any("1 label maps, since the table of labels counts" in note for note in dataset.notes)


def test_label_maps_of_other_images_and_reports_are_no_cases(tree: Path) -> None:
    label_map(tree / "mask", "7.7.7", "1.9")
    save(tags(REPORT, "SR", "1.8", "p"), tree / "report")
    dataset = read(tree)
    assert len(dataset.refs) == 4
    assert dataset.notes == ("left out: 1 series without images",)


def test_several_volumes(tmp_path: Path) -> None:
    series(tmp_path / "4d", "1.3", times=3)
    series(tmp_path / "3d", "1.4")
    dataset = read(tmp_path)
    assert [source(ref).time for ref in dataset.refs] == [None, None]
    assert "1 series hold several volumes and will be refused (time_series): set dataset.time" in dataset.notes
    every = read(tmp_path, time="all")
    assert [(ref.case_id, source(ref).time) for ref in every.refs] == [
        ("1.4", None),
        ("1.3/t0", 0),
        ("1.3/t1", 1),
        ("1.3/t2", 2),
    ]
    second = read(tmp_path, time=1)
    assert [(ref.case_id, source(ref).time) for ref in second.refs] == [("1.3/t1", 1)]
    assert "left out: 1 series without a volume 1" in second.notes
    assert len(read(tmp_path, time=0).refs) == 2


def test_foreign_and_damaged_files(tree: Path) -> None:
    """A damaged slice goes with the one series of its folder; elsewhere it is a case that the reader refuses."""
    (tree / "README.txt").write_text("no DICOM")
    (tree / "p/.DS_Store").touch()
    (tree / "DICOMDIR").touch()
    slice_ = tree / "p/thin/IM0002"
    slice_.write_bytes(slice_.read_bytes()[:140])
    (tree / "lost").write_bytes(slice_.read_bytes())
    dataset = read(tree)
    files = {ref.case_id: source(ref).files for ref in dataset.refs}
    assert slice_ in files["1.1.3"]
    assert len(files["1.1.4"]) == 2
    assert files["unreadable/lost"] == (tree / "lost",)
    assert "ignored 3 files that are no DICOM" in dataset.notes
    labelled = read(tree, "series,label\n1.1.3,a\n1.2.3,b\n")
    assert len(labelled.refs) == 2
    assert any("1 files whose header cannot be read" in note for note in labelled.notes)


def test_two_patients_in_one_series(tmp_path: Path) -> None:
    series(tmp_path / "a", "1.3", "p")
    series(tmp_path / "b", "1.3", "q")
    (ref,) = read(tmp_path).refs
    with pytest.raises(InputError, match="mixed_patients"):
        read_image(ref.source)


def test_real_ct_with_its_segmentation(shared_data: Path) -> None:
    folder = shared_data / "dicom/ct_3slice_with_seg"
    dataset = read(folder)
    assert [ref.label_map for ref in dataset.refs] == [folder / "liver.dcm"]
    assert len(source(dataset.refs[0]).files) == 3
