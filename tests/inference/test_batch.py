"""Many cases: each costs only itself, nothing finished is done again, and no name leads out of the folder."""

from __future__ import annotations

import csv
import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prediction_phantom import classifier, pictures, segmenter
from series_phantom import noise, series

from medray import cluster
from medray.cluster import Allotment
from medray.config import ConfigError
from medray.imaging import labels
from medray.imaging.reader import read
from medray.imaging.writer import png_bytes, write_nifti
from medray.inference import batch, cases, predict, records, table
from medray.inference.batch import Desk, Job, predict_cases
from medray.inference.cases import Found, Item, stem
from medray.inference.ensemble import Ensemble
from medray.inference.outputs import Wanted
from medray.inference.predict import Request, Summary, clock
from medray.inference.predictor import Predictor
from medray.types import InputError


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmentation of pictures."""
    return segmenter(tmp_path_factory.mktemp("models") / "flat", 2).folder


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmentation of volumes."""
    return segmenter(tmp_path_factory.mktemp("models") / "deep", 3).folder


@pytest.fixture(scope="module")
def sorter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classification of pictures."""
    return classifier(tmp_path_factory.mktemp("models") / "sorter").folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each pass of a model had."""
    passes: list[int] = []
    plain = Ensemble.predict_all

    def counted(self: Ensemble, images: Any, probabilities: bool = False) -> Any:
        passes.append(len(images))
        return plain(self, images, probabilities)

    monkeypatch.setattr(Ensemble, "predict_all", counted)
    return passes


def run(place: Path, model: Path, out: Path, **more: Any) -> Summary:
    return predict.run(Request(places=(place,), bundles=(model,), out=out, **more), lambda _: None)


def states(out: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every file of the cases."""
    files = (file for file in out.glob("*/*") if file.is_file())
    return {str(file.relative_to(out)): (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def table_of(summary: Summary) -> list[dict[str, str]]:
    assert summary.csv is not None
    return list(csv.DictReader(summary.csv.read_text(encoding="utf-8").splitlines()))


def test_broken_cases_cost_only_themselves(flat: Path, tmp_path: Path) -> None:
    data = pictures(tmp_path / "in", good=17, broken=3)
    summary = run(data, flat, tmp_path / "out")
    assert (len(summary.rows), summary.refused, summary.already) == (20, 3, 0)
    rows = table_of(summary)
    assert [bool(row["error"]) for row in rows] == [True] * 3 + [False] * 17
    assert all(row["file"] == str(data / f"case{number:03d}.png") for number, row in enumerate(rows))
    model = Predictor(flat)
    for row in rows[3:]:
        folder = tmp_path / "out" / row["folder"]
        assert {file.name for file in folder.iterdir()} == {"answer.json", "mask.png", "overlay.png"}
        mask = model.predict(Path(row["file"])).mask
        assert mask is not None
        np.testing.assert_array_equal(read(folder / "mask.png").image[0], mask)
        assert float(row["organ_voxels"]) == np.count_nonzero(mask == 1)
    assert not [file for file in (tmp_path / "out").iterdir() if file.name.endswith((".part", ".old"))]


def test_the_same_command_again_computes_nothing(flat: Path, tmp_path: Path, asked: list[int]) -> None:
    data = pictures(tmp_path / "in", good=3, broken=1)
    first = run(data, flat, tmp_path / "out")
    before, passes = states(tmp_path / "out"), len(asked)
    again = run(data, flat, tmp_path / "out")
    assert (again.already, len(asked)) == (4, passes)
    assert states(tmp_path / "out") == before
    assert table_of(again) == table_of(first)
    (data / "case001.png").touch()
    moved = data.rename(tmp_path / "moved")
    assert run(moved, flat, tmp_path / "out").already == 4, "by content, not by place or time"


def test_what_has_changed_is_computed_again(flat: Path, tmp_path: Path) -> None:
    data, out = pictures(tmp_path / "in", good=3, broken=1), tmp_path / "out"
    run(data, flat, out)
    (data / "case001.png").write_bytes((data / "case002.png").read_bytes())
    assert run(data, flat, out).already == 3
    (out / "case002" / "mask.png").unlink()
    assert run(data, flat, out).already == 3
    assert (out / "case002" / "mask.png").is_file()
    assert run(data, flat, out, retry=True).already == 3
    (data / "case000.png").write_bytes((data / "case002.png").read_bytes())
    assert run(data, flat, out).refused == 0
    assert run(data, flat, out, again=True).already == 0
    assert run(data, flat, out, wanted=Wanted(overlay=False)).already == 0
    assert {file.name for file in (out / "case002").iterdir()} == {"answer.json", "mask.png"}
    assert run(data, flat, out, wanted=Wanted(overlay=False), window={"overlap": 0.25}).already == 0
    other = segmenter(tmp_path / "other", 2, seed=7).folder
    assert run(data, other, out, wanted=Wanted(overlay=False), window={"overlap": 0.25}).already == 0


def test_interrupted_it_goes_on_from_there(flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = pictures(tmp_path / "in", good=9, broken=1), tmp_path / "out"
    plain, left = Desk.answer, [6]

    def answer(self: Desk, seen: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return plain(self, seen)

    with monkeypatch.context() as patch:
        patch.setattr(Desk, "answer", answer)
        with pytest.raises(KeyboardInterrupt):
            run(data, flat, out)
    before = states(out)
    done = len({name.split("/")[0] for name in before})
    assert 5 <= done <= 6
    assert not list(out.glob("*.csv"))
    summary = run(data, flat, out)
    assert (len(summary.rows), summary.already, summary.refused) == (10, done, 1)
    after = states(out)
    assert {name: after[name] for name in before} == before


def test_what_a_killed_command_left_is_cleared_away(flat: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / ".0123.part" / "x").mkdir(parents=True)
    (out / "case000").mkdir()
    (out / "case000" / "mine.txt").write_text("not medray's")
    run(pictures(tmp_path / "in", good=1), flat, out)
    assert not (out / ".0123.part").exists()
    assert (out / "case000" / "mine.txt").is_file(), "a folder that medray did not make stays"
    assert (out / "case000-2" / "mask.png").is_file()


def test_two_commands_do_not_share_a_folder(tmp_path: Path) -> None:
    with records.alone_in(tmp_path), pytest.raises(ConfigError, match="another command"), records.alone_in(tmp_path):
        pass


def test_per_case_answers_are_one_table(sorter: Path, tmp_path: Path, asked: list[int]) -> None:
    data = pictures(tmp_path / "in", good=40, broken=2)
    summary = run(data, sorter, tmp_path / "out")
    assert sum(asked) == 40
    assert len(asked) == 2, "many in one pass"
    rows = table_of(summary)
    assert all(float(row["a"]) + float(row["b"]) == pytest.approx(1) for row in rows[2:])
    plain = Predictor(sorter).predict(Path(rows[5]["file"]))
    assert float(rows[5]["a"]) == pytest.approx(plain.scores[0], abs=1e-6)
    assert rows[5]["labels"] == plain.labels[0]
    assert run(data, sorter, tmp_path / "out").already == 42


def test_a_fault_of_the_model_costs_one_case_and_is_tried_again(
    sorter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = pictures(tmp_path / "in", good=4)
    plain = Ensemble.predict_all

    def faulty(self: Ensemble, images: Any, probabilities: bool = False) -> Any:
        if any(case.case_id == "case002" for case in images):
            raise ZeroDivisionError("secret")
        return plain(self, images, probabilities)

    with monkeypatch.context() as patch:
        patch.setattr(Ensemble, "predict_all", faulty)
        summary = run(data, sorter, tmp_path / "out")
    failed = [record for _, record in summary.rows if record.error]
    assert [record.name for record in failed] == ["case002"]
    assert failed[0].error is not None
    assert failed[0].error[0] == "failed"
    assert "secret" not in failed[0].error[1]
    assert "ZeroDivisionError" in caplog.text
    assert (again := run(data, sorter, tmp_path / "out")).refused == 0
    assert again.already == 3


def test_results_that_cannot_be_written_stop_it(flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records, "put", full)
    with pytest.raises(ConfigError, match="No space left on device; what is finished stays"):
        run(pictures(tmp_path / "in", good=3), flat, tmp_path / "out")


def test_volumes_of_all_kinds(deep: Path, tmp_path: Path) -> None:
    """NIfTI, a DICOM series, archives of one series, of two, and of images, a broken one, and what is no image."""
    data = tmp_path / "in"
    (data / "dicom").mkdir(parents=True)
    scaled = {"Modality": "CT", "RescaleSlope": "1", "RescaleIntercept": "0"}
    placed = {"FrameOfReferenceUID": "1.2.9", "SliceThickness": 3.0, **scaled}
    slices = series(noise(8, 9, 10), **placed)
    other = series(noise(8, 9, 10, seed=1), number=1, SeriesInstanceUID="1.2.77", **placed)
    for number, content in enumerate(slices):
        (data / "dicom" / f"IM{number}").write_bytes(content)
    affine = np.array([[0, -1.1, 0, 5], [-0.9, 0, 0, 6], [0, 0, 2.0, 7], [0, 0, 0, 1]])
    write_nifti(data / "scan.nii.gz", noise(9, 8, 10), affine)
    packed = BytesIO()
    nibabel.Nifti1Image(noise(8, 8, 8), affine).to_file_map({"image": nibabel.FileHolder(fileobj=packed)})
    archives = {
        "one.zip": {f"a/{number}": content for number, content in enumerate(slices)} | {"README": b"words"},
        "two.zip": {f"{number}.dcm": content for number, content in enumerate([*slices, *other])},
        "many.zip": {"p/x.nii": packed.getvalue(), "q/x.nii": packed.getvalue(), ".DS_Store": b"?"},
        "evil.zip": {"../../x.nii": packed.getvalue()},
    }
    for name, members in archives.items():
        with zipfile.ZipFile(data / name, "w") as archive:
            for member, content in members.items():
                archive.writestr(member, content)
    summary = run(data, deep, out := tmp_path / "out")
    said = {str(place.relative_to(data)): record for place, record in summary.rows}
    assert set(said) >= {"dicom", "scan.nii.gz", "one.zip", "many.zip/p/x.nii", "many.zip/q/x.nii", "evil.zip"}
    assert len(said) == 8
    assert {place: record.error[0] for place, record in said.items() if record.error} == {"evil.zip": "unsafe_archive"}
    assert [record.name for record in said.values()].count("many.zip_p_x") == 1

    nifti, original = nibabel.load(out / "scan" / "mask.nii.gz"), nibabel.load(data / "scan.nii.gz")
    assert nifti.header["sform_code"].tobytes() == original.header["sform_code"].tobytes()
    np.testing.assert_array_equal(nifti.affine, original.affine)
    raw = read(data / "dicom")
    direct = Predictor(deep).predict(raw)
    assert direct.mask is not None
    for name in ("dicom", "one"):
        found = labels.load(out / name / "seg.dcm", raw)
        np.testing.assert_array_equal(found.case.image[0], direct.mask)
        assert said["dicom"].volumes == direct.volumes
    rows = {row["file"]: row for row in table_of(summary)}
    assert float(rows[str(data / "dicom")]["organ_ml"]) == pytest.approx(direct.volumes["organ"])
    assert run(data, deep, out).already == 7
    assert not list(out.glob(".*.part"))


def test_results_in_the_searched_folder_are_no_input(flat: Path, tmp_path: Path) -> None:
    data = pictures(tmp_path / "in", good=2)
    for already in (0, 2):
        summary = run(data, flat, data / "results")
        assert (len(summary.rows), summary.already) == (2, already)


def test_names_do_not_collide_and_others_images_are_not_overwritten(flat: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "in", tmp_path / "out"
    draw = np.random.default_rng(0)
    for name in ("a/b.png", "a_b.png", "A_B.png", "predictions.csv.png", "a/b.v2.png"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(png_bytes(draw.integers(0, 255, (16, 16)).astype(np.uint8)))
    summary = run(data, flat, out)
    names = [record.name for _, record in summary.rows]
    assert len({name.casefold() for name in names}) == 5
    assert all((out / name / "mask.png").is_file() for name in names)
    assert (out / "predictions.csv").is_file()
    site = tmp_path / "site2"
    site.mkdir()
    (site / "a_b.png").write_bytes(png_bytes(np.arange(256, dtype=np.uint8).reshape(16, 16)))
    before = states(out)
    other = run(site, flat, out)
    assert other.rows[0][1].name not in names
    assert {name: state for name, state in states(out).items() if name in before} == before
    assert run(data, flat, out).already == 5


def test_which_files_are_looked_at(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    for name in ("b.png", "a.png", "c.txt", ".hidden", "Thumbs.db", "results/x.png"):
        (tmp_path / name).touch()
    found = table.image_files([tmp_path], leave_out=tmp_path / "results")
    assert [file.name for file in found] == ["a.png", "b.png", "c.txt"]
    with pytest.raises(ConfigError, match="no files in"):
        table.image_files([tmp_path / "results"], leave_out=tmp_path / "results")


TEXT = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=80)


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXT.filter(lambda text: text not in (".", "..")), min_size=1, max_size=4))
def test_any_path_becomes_a_harmless_name(parts: list[str]) -> None:
    root = Path("/data")
    name = stem(root.joinpath(*parts), {root})
    assert name
    assert not name.startswith((".", "-"))
    assert not set(name) & set('/\\\0\n:*?"<>| ')
    assert len(f"{name}-9999".encode()) < 255


def test_names_come_from_the_place_within_its_root(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (archive := tmp_path / "pack.zip").write_bytes(b"")
    one, two = tmp_path / "one", tmp_path / "two"
    assert stem(one / "p" / "scan.nii.gz", {one}) == "p_scan"
    assert stem(one / "scan.nii.gz", {one, two}) == "one_scan"
    assert stem(one, {one}) == "one"
    assert stem(archive / "p" / "x.png", {archive}) == "pack_p_x"
    assert stem(one / "x.png", {one / "x.png", one / "y.png"}) == "x"
    assert stem(one / "1.2.840", {one}) == "1.2.840"


def test_a_torn_or_foreign_record_is_none(tmp_path: Path) -> None:
    record = records.Record("x", "/x.png", "c", "k", ("a",), {"a": 1.0}, conformal_set=(), error=None)
    with records.new_folder(tmp_path, "x") as folder:
        records.put(folder, record)
    assert records.load(tmp_path / "x") == record
    text = (tmp_path / "x" / "answer.json").read_text()
    for broken in (text[:30], "[]", json.dumps({**json.loads(text), "format": 99}), "{}", '{"format": 1}'):
        (tmp_path / "x" / "answer.json").write_text(broken)
        assert records.load(tmp_path / "x") is None


def test_a_new_folder_that_fails_leaves_the_old(tmp_path: Path) -> None:
    with records.new_folder(tmp_path, "x") as folder:
        (folder / "old").touch()
    with pytest.raises(FileNotFoundError), records.new_folder(tmp_path, "x") as folder:
        (folder / "new" / "deeper").touch()
    assert [file.name for file in tmp_path.rglob("*")] == ["x", "old"]


def test_the_time_that_is_left_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [clock(seconds) for seconds in (0.4, 61, 3723)] == ["0:00", "1:01", "1:02:03"]
    now = [0.0]
    monkeypatch.setattr(predict.time, "monotonic", lambda: now[0])
    said: list[str] = []
    progress = predict.Progress(100, said.append)
    for _ in range(25):
        now[0] += 1
        progress.step(records.Record("x", "", "", ""))
    assert said == ["10/100  1 cases/s, 1:30 left", "20/100  1 cases/s, 1:20 left"]


@pytest.fixture
def ray_here() -> Iterator[None]:
    cluster.connect()
    yield
    import ray

    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_actors_share_the_work_and_a_dying_one_costs_one_case(sorter: Path, tmp_path: Path) -> None:
    class Fragile(Ensemble):
        """Ends its process over a case that is called fatal; made here, so that it travels to the workers."""

        def predict_all(self, images: Any, probabilities: bool = False) -> Any:
            if any(case.case_id == "fatal" for case in images):
                os._exit(1)
            return super().predict_all(images, probabilities)

    data = pictures(tmp_path / "in", good=12, broken=1)
    (data / "case005.png").rename(data / "fatal.png")
    (out := tmp_path / "out").mkdir()
    found = cases.find([data], 2, out, tmp_path / "unpacked")
    items = [item for item, _ in cases.items(found, out)]
    job = Job(lambda: Fragile([Predictor(sorter)]), Ensemble.load([sorter]).facts, Wanted(), out)
    said = {item.name: record for item, record in predict_cases(items, job, Allotment(2, 0.5, False))}
    refused = {name: record.error[0] for name, record in said.items() if record.error}
    assert len(said) == 13
    assert refused.pop("fatal") == "worker_died"
    assert list(refused) == ["case000"]
    assert all((out / name / "answer.json").is_file() for name in said)


def test_items_that_cannot_be_listed_are_refused(sorter: Path, tmp_path: Path) -> None:
    error = InputError("unsafe_archive", "it leads elsewhere")
    job = Job(lambda: Ensemble.load([sorter]), Ensemble.load([sorter]).facts, Wanted(), None)
    ((item, record),) = predict_cases([Item(tmp_path, error, "x")], job)
    assert (item.name, record.error) == ("x", ("unsafe_archive", "it leads elsewhere", ""))
    assert list(cases.items([Found(tmp_path, error, "x")], None)) == [(Item(tmp_path, error, "x"), None)]


def test_the_key_names_all_that_an_answer_depends_on(flat: Path) -> None:
    facts = Ensemble.load([flat]).facts
    job = Job(lambda: Ensemble.load([flat]), facts, Wanted(), None, "w")
    others = [
        replace(job, facts=replace(facts, digest="other")),
        replace(job, wanted=Wanted(probabilities=True)),
        replace(job, window="v"),
    ]
    assert len({records.key_of("c", each.asked) for each in (job, *others)} | {records.key_of("d", job.asked)}) == 5


def test_lack_of_memory_is_no_fault_of_the_case() -> None:
    for error in (MemoryError(), ConfigError(["window.memory_gb: ..."])):
        assert batch._refusal(error).code in records.PASSING
