"""Manifests against files: written and read as coreutils' sha256sum does."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medray.pipeline.integrity import Problem, dataset_files, verify, write_manifest
from medray.sections.base import DatasetSection
from medray.types import ArrayRef, CaseRef, InputError, SeriesRef

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with three files and their manifest."""
    root = tmp_path / "data"
    for name in ("a.png", "b/c d.png", "labels.csv"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    write_manifest(images(root), root, root / "SHA256", tmp_path / "cache")
    return root


def images(root: Path) -> list[Path]:
    return [root / "labels.csv", root / "b/c d.png", root / "a.png"]


def check(root: Path, files: list[Path] | None = None) -> list[str]:
    problems = verify(images(root) if files is None else files, root / "SHA256", root.parent / "cache")
    return [str(problem) for problem in problems]


def refuse(root: Path, text: str | bytes) -> InputError:
    (root / "SHA256").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as caught:
        check(root)
    return caught.value


def test_all_is_well(data: Path) -> None:
    assert check(data) == []
    assert (data / "SHA256").read_text().splitlines()[1].endswith("  b/c d.png")
    assert sorted(path.name for path in data.iterdir()) == ["SHA256", "a.png", "b", "labels.csv"]


def test_each_problem_is_named(data: Path) -> None:
    (data / "a.png").write_text("A.png")
    (data / "b/c d.png").unlink()
    (data / "new.png").touch()
    assert check(data, [*images(data), data / "new.png"]) == [
        "a.png: changed",
        "b/c d.png: missing",
        "new.png: not listed",
    ]


def test_listed_files_are_verified_though_no_image(data: Path) -> None:
    """A table of labels is no image, but a changed label spoils a training all the same."""
    (data / "labels.csv").write_text("x")
    (data / "b/c d.png").unlink()
    assert check(data, [data / "a.png"]) == ["b/c d.png: missing", "labels.csv: changed"]


def test_the_other_forms_of_a_manifest(data: Path) -> None:
    """As written by `sha256sum ./*`, in binary mode, in capitals, with a byte order mark and ends of Windows."""
    lines = (data / "SHA256").read_text().splitlines()
    lines = [f"{line[:64].upper()} *./{line[66:]}" for line in lines]
    (data / "SHA256").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\n\n")
    assert check(data) == []


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (f"{EMPTY}  ../a\n", "escaping_path"),
        (f"{EMPTY}  /etc/passwd\n", "escaping_path"),
        (f"\\{EMPTY}  ..\\\\a\n{EMPTY}  b/../../a\n", "escaping_path"),
        ("d41d8cd98f00b204e9800998ecf8427e  a.png\n", "broken_manifest"),
        (f"SHA256 (a.png) = {EMPTY}\n", "broken_manifest"),
        (f"{EMPTY}  a.png\n{EMPTY[::-1]}  ./a.png\n", "broken_manifest"),
        (b"\xff\xfe", "broken_manifest"),
    ],
)
def test_what_is_no_manifest(data: Path, text: str | bytes, code: str) -> None:
    assert refuse(data, text).code == code


def test_a_manifest_that_is_not_there(data: Path) -> None:
    (data / "SHA256").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        check(data)


def test_a_file_that_is_not_there_is_not_listed(data: Path) -> None:
    with pytest.raises(InputError, match="missing_files: 1 of 1 files cannot be read, the first is 'gone'"):
        write_manifest([data / "gone"], data, data / "SHA256", data.parent / "cache")
    assert check(data) == []


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no coreutils here")
def test_sha256sum_agrees(data: Path) -> None:
    (data / "back\\slash").touch()
    (data / "new\nline").touch()
    write_manifest(
        [*images(data), data / "back\\slash", data / "new\nline"], data, data / "SHA256", data.parent / "cache"
    )
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256"], cwd=data, check=True, capture_output=True)
    names = ["a.png", "b/c d.png", "labels.csv", "back\\slash", "new\nline"]
    text = subprocess.run(["sha256sum", *names], cwd=data, check=True, capture_output=True).stdout
    (data / "SHA256").write_bytes(text)
    assert check(data, [data / name for name in names]) == []


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(found=st.dictionaries(names.filter(lambda name: name not in (".", "..")), st.binary(max_size=9), max_size=4))
def test_any_names(tmp_path: Path, found: dict[str, bytes]) -> None:
    """What is written verifies, whatever the names; one changed byte does not."""
    root = tmp_path / "any"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    for name, content in found.items():
        (root / name).write_bytes(content)
    files, manifest, cache = [root / name for name in found], tmp_path / "SHA256", tmp_path / "cache"
    write_manifest(files, tmp_path, manifest, cache)
    assert verify(files, manifest, cache) == ()
    for file in files[:1]:
        file.write_bytes(file.read_bytes() + b"x")
        assert verify(files, manifest, cache) == (Problem("changed", os.path.relpath(file, tmp_path)),)


def test_the_files_of_a_dataset() -> None:
    one, two, three = Path("/1"), Path("/2"), Path("/3")
    refs = [
        CaseRef("a", one, label_map=three),
        CaseRef("b", ArrayRef(one, "x", 0)),
        CaseRef("c", SeriesRef((two, one))),
    ]
    assert dataset_files(refs) == (one, three, two)


def test_the_setting_is_a_path_from_the_working_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert DatasetSection(name="x", manifest="SHA256").manifest == tmp_path / "SHA256"
    assert DatasetSection(name="x").manifest is None


def test_the_real_manifest(shared_data: Path, tmp_path: Path) -> None:
    """Its lines name all data, so only its entries of one set are tried."""
    lines = (shared_data / "MANIFEST.sha256").read_text().splitlines()
    chosen = [line for line in lines if "./nrrd/" in line]
    (tmp_path / "nrrd").symlink_to(shared_data / "nrrd")
    (tmp_path / "SHA256").write_text("\n".join(chosen))
    files = [tmp_path / "nrrd" / path.name for path in (shared_data / "nrrd").iterdir()]
    assert verify(files, tmp_path / "SHA256", tmp_path / "cache") == ()
