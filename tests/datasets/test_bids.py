from pathlib import Path

import pytest
from layouts import refused
from pydantic import ValidationError

from medray.config import ConfigError
from medray.datasets.bids import Config
from medray.datasets.scan import scan
from medray.types import Dataset, InputError

TABLE = "participant_id\tsex\tgroup\nsub-01\tF\tcase\nsub-02\tM\tcontrol\n"
IMAGES = ("sub-01/anat/sub-01_T1w.nii.gz", "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii")


def write(root: Path, *files: str, table: str = TABLE) -> Path:
    for name in files or IMAGES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    if table:
        (root / "participants.tsv").write_text(table)
    return root


def refuse(root: Path, code: str, **settings: object) -> str:
    return refused(Config(path=root, **settings), code)


def test_labels_of_participants(tmp_path: Path) -> None:
    write(tmp_path, *IMAGES, "sub-01/anat/sub-01_T2w.nii.gz", "sub-01/anat/sub-01_T1w.json", "sub-01/func/x_T1w.nii.gz")
    dataset = scan(Config(path=tmp_path))
    found = [(ref.case_id, ref.source, ref.subject_id, ref.target) for ref in dataset.refs]
    assert found == [
        ("sub-01/anat/sub-01_T1w", tmp_path / IMAGES[0], "sub-01", (0,)),
        ("sub-02/ses-1/anat/sub-02_ses-1_T1w", tmp_path / IMAGES[1], "sub-02", (1,)),
    ]
    assert dataset.classes == ("case", "control")
    assert dataset.notes == ()


def test_another_suffix_and_column(tmp_path: Path) -> None:
    write(tmp_path, "sub-01/anat/sub-01_acq-hi_T2w.nii.gz", "sub-02/anat/sub-02_T2w.nii.gz", "sub-02/anat/x_T1w.nii")
    assert len(scan(Config(path=tmp_path, suffix="T2w", label_column="sex")).refs) == 2
    assert "'case'" in refuse(tmp_path, "too_few_classes", suffix="acq-hi_T2w")


def test_who_is_left_out_is_counted(tmp_path: Path) -> None:
    table = TABLE + "sub-03\tF\tn/a\nsub-04\tF\tcase\n"
    dataset = scan(Config(path=write(tmp_path, *IMAGES, "sub-03/anat/sub-03_T1w.nii.gz", table=table)))
    assert len(dataset.refs) == 2
    assert dataset.notes == (
        "left out 1 participants whose label is n/a",
        "left out 1 participants without an image *_T1w: 'sub-04'",
    )


@pytest.mark.parametrize(
    ("table", "code", "says"),
    [
        (TABLE.replace("sub-02", "sub-05"), "missing_label", "1 participants with images are not in"),
        (TABLE + "sub-02\tM\tcase\n", "duplicate_subject", "1 participants"),
        (TABLE.replace("control", ""), "missing_label", "lines 3"),
        (TABLE.replace("\tcontrol", ""), "broken_table", "lines 3"),
    ],
)
def test_wrong_tables(tmp_path: Path, table: str, code: str, says: str) -> None:
    assert says in refuse(write(tmp_path, table=table), code, multilabel=False)


def test_participants_by_another_name(tmp_path: Path) -> None:
    write(tmp_path, table=TABLE.replace("participant_id", "who"))
    with pytest.raises(ConfigError, match="no participant column"):
        scan(Config(path=tmp_path))
    assert len(scan(Config(path=tmp_path, participant_column="who")).refs) == 2


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"participants.tsv' does not exist"):
        scan(Config(path=write(tmp_path, table="")))


def masks(root: Path, *names: str, **settings: object) -> Dataset:
    write(root, *IMAGES, *(f"derivatives/manual/{name}.nii.gz" for name in names), table="")
    return scan(Config(path=root, masks="manual", classes=("background", "lesion"), **settings))


FIRST, SECOND = "sub-01/anat/sub-01_dseg", "sub-02/ses-1/anat/sub-02_ses-1_space-orig_dseg"


def test_label_maps_in_derivatives(tmp_path: Path) -> None:
    dataset = masks(tmp_path, FIRST, SECOND)
    assert [ref.label_map for ref in dataset.refs] == [
        tmp_path / f"derivatives/manual/{name}.nii.gz" for name in (FIRST, SECOND)
    ]
    assert dataset.classes == ("background", "lesion")
    assert [ref.subject_id for ref in dataset.refs] == ["sub-01", "sub-02"]


def test_one_label_map_per_image(tmp_path: Path) -> None:
    other = "sub-01/anat/sub-01_desc-lesion_dseg"
    with pytest.raises(InputError, match=r"missing_partner: 1 images .* 'sub-02"):
        masks(tmp_path, FIRST, "sub-02/ses-2/anat/sub-02_ses-2_dseg")
    with pytest.raises(InputError, match=r"ambiguous_label: .*sub-01_desc-lesion_dseg"):
        masks(tmp_path, other, SECOND)
    dataset = masks(tmp_path, "sub-02/ses-1/anat/sub-02_ses-1_desc-lesion_dseg", mask_suffix="desc-lesion_dseg")
    assert dataset.refs[0].label_map == tmp_path / f"derivatives/manual/{other}.nii.gz"


def test_a_label_map_of_one_run_is_not_that_of_the_image_without(tmp_path: Path) -> None:
    images = [f"sub-01/anat/sub-01{run}_T1w.nii.gz" for run in ("", "_run-2")]
    write(tmp_path, *images, "derivatives/manual/sub-01/anat/sub-01_run-2_dseg.nii.gz")
    assert "fit several images" in refuse(tmp_path, "ambiguous_label", masks="manual", classes=("none", "lesion"))


def test_label_maps_need_names(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="must name their values"):
        Config(path=tmp_path, masks="manual")
    with pytest.raises(ConfigError, match=r"manual' does not exist"):
        scan(Config(path=write(tmp_path), masks="manual", classes=("a", "b")))
