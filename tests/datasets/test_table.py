from pathlib import Path

import pytest

from medray.config import ConfigError
from medray.datasets.scan import scan
from medray.datasets.table import Config
from medray.types import Dataset, InputError


def write(root: Path, text: str | bytes, images: int = 4) -> Path:
    for index in range(images):
        (root / f"{index}.png").touch()
    path = root / "table.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(root: Path, text: str | bytes, **settings: object) -> Dataset:
    return scan(Config(path=write(root, text), **settings))


def refuse(root: Path, text: str | bytes, code: str, **settings: object) -> str:
    with pytest.raises(InputError) as caught:
        read(root, text, **settings)
    assert caught.value.code == code
    return str(caught.value)


def test_all_columns(tmp_path: Path) -> None:
    rows = "0.png,b,s1,train,2\n1.png,a,s1,Train,0.5\n2.png,b,s2,valid,\n3.png,a,s3,test,1\n"
    dataset = read(tmp_path, f"image,label,subject,split,weight\n{rows}")
    assert dataset.classes == ("a", "b")
    assert not dataset.multilabel
    assert dataset.notes == ()
    found = [(r.case_id, r.target, r.subject_id, r.split, r.weight, r.source) for r in dataset.refs]
    assert found == [
        ("0.png", (1,), "s1", "train", 2.0, tmp_path / "0.png"),
        ("1.png", (0,), "s1", "train", 0.5, tmp_path / "1.png"),
        ("2.png", (1,), "s2", "val", 1.0, tmp_path / "2.png"),
        ("3.png", (0,), "s3", "test", 1.0, tmp_path / "3.png"),
    ]


def test_spreadsheet_habits(tmp_path: Path) -> None:
    """Byte order mark, semicolons, line ends of Windows, aliases in capitals, backslashes, blank lines."""
    (tmp_path / "img").mkdir()
    (tmp_path / "img/x.png").touch()
    dataset = read(tmp_path, b"\xef\xbb\xbfFilename;Class;Patient_ID\r\nimg\\x.png;a;7\r\n;;\r\n0.png;b, c;8\r\n")
    assert [ref.case_id for ref in dataset.refs] == ["img/x.png", "0.png"]
    assert dataset.classes == ("a", "b, c")
    assert [ref.subject_id for ref in dataset.refs] == ["7", "8"]


def test_multilabel_by_itself(tmp_path: Path) -> None:
    dataset = read(tmp_path, "image,label\n0.png,b|a\n1.png,\n2.png,b\n")
    assert dataset.multilabel
    assert [ref.target for ref in dataset.refs] == [(0, 1), (), (1,)]
    assert any("1 labels are empty" in note for note in dataset.notes)
    assert any("no subject column" in note for note in dataset.notes)


def test_multilabel_by_choice(tmp_path: Path) -> None:
    text = "image,label\n0.png,a|b\n1.png,\n2.png,c\n"
    assert "line" in refuse(tmp_path, text, "missing_label", multilabel=False)
    dataset = read(tmp_path, "image,label\n0.png,a|b\n2.png,c\n", multilabel=False)
    assert dataset.classes == ("a|b", "c")
    assert read(tmp_path, "image,label\n0.png,a\n2.png,c\n", multilabel=True).multilabel


def test_numbers_sort_as_numbers(tmp_path: Path) -> None:
    assert read(tmp_path, "image,label\n0.png,10\n1.png,2\n").classes == ("2", "10")


def test_class_order_can_be_given(tmp_path: Path) -> None:
    text = "image,label\n0.png,sick\n1.png,healthy\n"
    dataset = read(tmp_path, text, classes=("sick", "healthy"))
    assert [ref.target for ref in dataset.refs] == [(0,), (1,)]
    says = refuse(tmp_path, text, "unknown_class", classes=("sick", "heathy"))
    assert "did you mean 'heathy'" in says
    assert "lines 3" in says
    assert "'x'" in refuse(tmp_path, text, "empty_class", classes=("sick", "healthy", "x"))


def test_columns_by_name_and_missing_ones(tmp_path: Path) -> None:
    text = "img,finding\n0.png,a\n1.png,b\n"
    assert len(read(tmp_path, text, image_column="img", label_column="finding").refs) == 2
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert len(caught.value.mistakes) == 2
    assert "has: img, finding" in str(caught.value)
    with pytest.raises(ConfigError, match=r"no column 'findng'; did you mean 'finding'\?"):
        read(tmp_path, text, image_column="img", label_column="findng")
    with pytest.raises(ConfigError, match="'path', 'file' could each be it"):
        read(tmp_path, "path,file,label\n0.png,1.png,a\n")
    with pytest.raises(ConfigError, match="no columns at all"):
        read(tmp_path, "")


def test_subject_split_and_weight_by_name(tmp_path: Path) -> None:
    """Named columns count, also where one with a usual name is there too."""
    text = "image,label,subject,patient no,fold,w,weight\n0.png,a,x,7,train,3,9\n1.png,b,y,8,test,0.5,9\n"
    named = {"subject_column": "patient no", "split_column": "fold", "weight_column": "w"}
    found = [(ref.subject_id, ref.split, ref.weight) for ref in read(tmp_path, text, **named).refs]
    assert found == [("7", "train", 3.0), ("8", "test", 0.5)]
    found = [(ref.subject_id, ref.split, ref.weight) for ref in read(tmp_path, text).refs]
    assert found == [("x", None, 9.0), ("y", None, 9.0)]
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text, subject_column="patient", split_column="folds", weight_column="ww")
    assert len(caught.value.mistakes) == 3


def test_missing_images_are_counted(tmp_path: Path) -> None:
    text = "image,label\n" + "".join(f"gone/{n}.png,a\n" for n in range(5)) + "0.png,b\n"
    says = refuse(tmp_path, text, "missing_files")
    assert "5 of 6 images do not exist: 'gone/0.png', 'gone/1.png', 'gone/2.png', ..." in says


def test_absolute_paths_work(tmp_path: Path) -> None:
    assert len(read(tmp_path, f"image,label\n{tmp_path / '0.png'},a\n1.png,b\n").refs) == 2


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("image,label\n0.png,a\n1.png,b,c\n", "broken_table", "lines 3"),
        ('image,label\n"0.png","a\nb"\n1.png\n', "broken_table", "lines 4"),
        ('image,label\n0.png,"a\n', "broken_table", "unexpected end"),
        (b"image,label\n0.png,\xe9\n", "broken_table", "UTF-8"),
        ("image,label\n,a\n", "broken_table", "no image in 1 rows"),
        ("image,label,split\n0.png,a,train\n1.png,b,dev\n", "wrong_split", "'dev'"),
        ("image,label,weight\n0.png,a,1\n1.png,b,much\n", "wrong_weight", "'much'"),
        ("image,label,weight\n0.png,a,1\n1.png,b,-1\n", "wrong_weight", "'-1'"),
        ("image,label\n0.png,a\n./0.png,b\n", "duplicate_case", "'0.png'"),
        ("image,label\n", "no_cases", "no case"),
        ("image,label\n0.png,a\n", "too_few_classes", "'a'"),
    ],
)
def test_wrong_tables(tmp_path: Path, text: str | bytes, code: str, says: str) -> None:
    assert says in refuse(tmp_path, text, code)


def test_missing_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a CSV file with a header"):
        scan(Config(path=tmp_path / "no.csv"))
    with pytest.raises(ConfigError, match="is a folder"):
        scan(Config(path=tmp_path))
