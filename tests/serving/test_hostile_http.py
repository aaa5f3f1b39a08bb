"""Hostile files over HTTP: each has its answer, none ends the service, and nothing of a patient comes out anywhere."""

from __future__ import annotations

import asyncio
import functools
import io
import json
import logging
import re
import runpy
import time
import zipfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
from PIL import Image, PngImagePlugin
from service_phantom import Running, service
from test_ingress import Bundles, Direct, bundles_of, lines, nifti, png

from medray.imaging.limits import Limits
from medray.serving import decoders, ingress, keys, watched
from medray.serving.audit import default_folder, verify

BAD_INPUTS = Path(__file__).parents[3] / "shared" / "bad_inputs" / "make_bad_inputs.py"
LIMITS = Limits(max_decompressed_bytes=12 << 20)
FLAT = ("raster", "dicom", "http")
"""Groups of images with two axes."""
NAMED = {"extension_mismatch"}
"""Warnings of what a file is called, which the service does not look at."""
MODELS = ("m_pickle_pt", "m_pickle_raw", "m_yaml", "m_yaml_bomb", "m_bundle", "m_safetensors")
"""No images: over HTTP they are of no type that is taken."""

Entries = tuple[Path, list[dict[str, Any]]]


@pytest.fixture
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    return bundles_of(tmp_path_factory)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Entries:
    if not BAD_INPUTS.exists():
        pytest.skip("no ../shared/bad_inputs beside this checkout")
    folder = tmp_path_factory.mktemp("bad")
    manifest = runpy.run_path(str(BAD_INPUTS))["make"](folder, bomb_mib=64)
    assert not manifest["skipped"]
    assert len(manifest["cases"]) == 134
    return folder, manifest["cases"]


def content_of(file: Path) -> bytes:
    """A file, or a folder as the archive that a browser would send."""
    if file.is_file():
        return file.read_bytes()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for member in sorted(file.iterdir()):
            archive.write(member, member.name)
    return packed.getvalue()


def expected(entry: dict[str, Any]) -> tuple[int, str | None]:
    """Status, and the code or warning."""
    if entry["group"] == "label":
        return 200, None  # the label is wrong, and the image beside it is not
    if entry["id"] in MODELS:
        return 415, "unsupported_type"
    if entry["id"] == "m_mlflow_loader":
        return 415, "unsupported_type"  # a folder of no image
    code = entry["serve"]["code"]
    return entry["serve"]["status"], None if code in NAMED else code


def values_of(content: bytes) -> set[str]:
    """Texts and UIDs of a DICOM file that could tell whose it is."""
    try:
        dataset = pydicom.dcmread(io.BytesIO(content), force=True, stop_before_pixels=True)
        found = [
            str(one.value) for one in dataset.iterall() if one.VR in ("PN", "LO", "SH", "ST", "LT", "UT", "UI", "DA")
        ]
    except Exception:
        return set()
    # Names of types and of the manner of storing are no one's; a few digits are in some digest by chance.
    return {
        text for text in found if len(text) > (8 if text.isalnum() else 4) and not text.startswith("1.2.840.10008.")
    }


def leaks(said: str, folder: Path, entry: dict[str, Any], content: bytes) -> set[str]:
    words = {str(folder), entry["id"], Path(entry["path"]).name, "DOE JANE", "DOE^JANE", "Doe", "<script>", "passwd"}
    if entry["group"] == "label":
        words.remove("image.nii.gz")  # the service calls its own preview so
    return {word for word in words | values_of(content) if word in said}


async def answer_to(running: Running, folder: Path, entry: dict[str, Any]) -> httpx.Response:
    file = folder / entry["path"]
    content = content_of(file)
    model = "flat" if entry["group"] in FLAT else "volume"
    if entry["group"] == "http":
        kind = json.loads(Path(f"{file}.headers.json").read_text())["Content-Type"]
        return await running.client.post("/v1/predict", content=content, headers={"Content-Type": kind})
    return await running.client.post(f"/v1/predict?model={model}&keep=true", content=content)


def test_every_hostile_file_has_its_status_and_code_and_tells_nothing(
    cases: Entries, bundles: Bundles, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, entries = cases
    monkeypatch.setattr(decoders, "Decoder", functools.partial(decoders.Decoder, limits=LIMITS))
    caplog.set_level(logging.DEBUG)
    wrong: dict[str, Any] = {}
    said: list[tuple[dict[str, Any], str]] = []

    async def ask() -> None:
        async with service([bundles.flat, bundles.volume], decoders=2) as running:
            for good in (png(), nifti()):  # the imports of the first file take longer
                await running.client.post("/v1/predict?model=volume", content=good)

            async def one(entry: dict[str, Any]) -> None:
                answer = await answer_to(running, folder, entry)
                body = answer.json()
                status, code = expected(entry)
                if answer.status_code == 200:
                    words = [warning["word"] for warning in body["warnings"]]
                    found = code if code in words or (code is None and not set(words) & {"phi_in_header"}) else words
                    place = body["links"]["report"]
                    page = (await running.client.get(place)).text
                    # Pictures in base64 hold any three letters.
                    said.append((entry, re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)))
                else:
                    found = body["code"]
                    problem = ["type", "title", "status", "code", "detail", "hint", "request_id"]
                    whole = list(body) == problem and body["request_id"] == answer.headers["x-request-id"]
                    if not whole or not body["detail"] or answer.headers["content-type"] != "application/problem+json":
                        wrong[entry["id"]] = ("no whole problem", answer.text)
                if (answer.status_code, found) != (status, code):
                    wrong[entry["id"]] = ((status, code), (answer.status_code, found))
                said.append((entry, answer.text + str(answer.headers)))

            for start in range(0, 134, 32):
                await asyncio.gather(*[one(entry) for entry in entries[start : start + 32]])
            assert (await running.client.post("/v1/predict", content=png())).status_code == 200
            assert running.ingress.room.taken == 0

    asyncio.run(ask())
    assert wrong == {}
    logged = caplog.text
    recorded = "".join(file.read_text() for file in default_folder().iterdir() if file.is_file())
    for entry, text in said:
        content = content_of(folder / entry["path"])
        for where, told in (("answer", text), ("log", logged), ("audit", recorded)):
            assert leaks(told, folder, entry, content) == set(), (entry["id"], where)
    assert verify(default_folder()).faults == ()
    assert len(lines()) == 2 + 134 + 1
    assert not list(Path.cwd().glob("PWNED_*"))


# Canaries

CANARY = [f"ZQ{number:02d}CANARY" for number in range(18)]
TAGS = (
    "PatientName",
    "PatientID",
    "InstitutionName",
    "ReferringPhysicianName",
    "StudyDescription",
    "AccessionNumber",
    "SeriesDescription",
    "OperatorsName",
)


def slice_with(*canaries: str) -> bytes:
    """A CT slice with canaries in its tags, and in a private one."""
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = pydicom.uid.generate_uid(), pydicom.uid.generate_uid()
    dataset.Modality = "CT"
    for name, canary in zip(TAGS, canaries, strict=False):
        setattr(dataset, name, canary)
    dataset.add_new(0x00110010, "LO", "SOMEONE")
    dataset.add_new(0x00111001, "LO", canaries[len(TAGS)])
    dataset.Rows = dataset.Columns = 16
    dataset.PixelSpacing, dataset.SliceThickness = [1.0, 1.0], 1.0
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation, dataset.SamplesPerPixel = 15, 1, 1
    dataset.PhotometricInterpretation, dataset.RescaleSlope, dataset.RescaleIntercept = "MONOCHROME2", 1, 0
    dataset.PixelData = np.random.default_rng(0).integers(-900, 900, (16, 16)).astype(np.int16).tobytes()
    content = io.BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    return content.getvalue()


def picture_with(canary: str, other: str) -> bytes:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Author", canary)
    chunks.add_itxt("Comment", other)
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16)).astype(np.uint8)).save(
        content, "png", pnginfo=chunks
    )
    return content.getvalue()


async def all_roads(running: Running, key: str, said: list[str]) -> None:
    """Canaries 0 to 17 wherever a client can put a word."""
    dicom, picture = slice_with(*CANARY[:9]), picture_with(*CANARY[9:11])
    headers = {
        "X-API-Key": key,
        "X-Medray-Sticky": CANARY[11],
        "User-Agent": CANARY[12],
        "Referer": f"http://127.0.0.1/{CANARY[12]}",
        "X-Request-Id": CANARY[13],
        "Cookie": f"a={CANARY[13]}",
    }

    async def send(method: str, path: str, **named: Any) -> httpx.Response:
        answer = await running.client.request(method, path, headers={**headers, **named.pop("headers", {})}, **named)
        said.append(f"{answer.headers}{answer.text}")
        return answer

    for content in (dicom, picture, dicom[:-200], picture[:-60]):
        for query in (
            "",
            "?keep=true",
            "?model=flat",
            f"?model={CANARY[14]}",
            f"?output={CANARY[15]}",
            f"?x={CANARY[15]}",
        ):
            answer = await send("POST", f"/v1/predict{query}", content=content)
            form = {"file": (f"../{CANARY[16]}.dcm", content, f"image/{CANARY[16]}")}
            await send("POST", f"/v1/predict{query}", files=form, data={CANARY[17]: CANARY[17]})
            if answer.status_code == 200:
                links = answer.json().get("links", {})
                for name, place in links.items():
                    if name not in (
                        "mask",
                        "dicom_seg",
                    ):  # files for who sent the image: what they keep is its own test
                        await send("GET", place)
                await send("POST", "/v1/feedback", json={"request_id": answer.json()["request_id"], "correct": True})
    bad = {"request_id": "0" * 32, "correct": False, "label": CANARY[17]}
    await send("POST", "/v1/feedback", json=bad)
    job = await send(
        "POST", "/v1/predict?model=flat", content=dicom, headers={"Prefer": f"respond-async; {CANARY[15]}"}
    )
    for _ in range(500):
        if (await send("GET", job.headers["location"])).json()["state"] in ("completed", "failed"):
            break
        await asyncio.sleep(0.02)
    for path in ("models", "jobs", "results", CANARY[14]):
        await send("GET", f"/v1/{path}/{CANARY[14]}")
        await send("GET", f"/v2/{path}/{CANARY[14]}")
    tensor = {"name": CANARY[17], "shape": [1], "datatype": CANARY[17], "data": [CANARY[17]]}
    await send("POST", "/v2/models/plain/infer", json={"inputs": [tensor], "parameters": {CANARY[17]: 1}})
    for path in ("/v1/jobs", "/v1/models", "/v1/drift", "/v1/agreement", "/metrics", "/v1/health"):
        await send("GET", path)
    for strange in (
        {"X-API-Key": f"mk_{CANARY[13]}"},
        {"Authorization": f"Bearer {CANARY[13]}.a.b"},
        {"Host": CANARY[13]},
    ):
        await send("GET", "/v1/models", headers=strange)
    await send("POST", "/v1/predict", content=picture, headers={"Origin": f"https://{CANARY[13]}"})
    await send("POST", "/v1/predict", content=picture, headers={"Content-Length": CANARY[13]})


def test_no_canary_comes_out_of_any_answer_log_or_record(
    bundles: Bundles, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    """18 words where patients' names lie in files, and where people put them: in names, queries and headers."""
    monkeypatch.setattr(ingress, "Decoders", Direct)
    monkeypatch.setattr(watched, "LOOK_S", 0.0)
    caplog.set_level(logging.DEBUG)
    key = keys.add(home / "keys.json", "ann")
    said: list[str] = []

    async def ask() -> None:
        async with service([bundles.plain, bundles.flat]) as running:
            # The client of this test tells its own requests to the log.
            logging.getLogger("httpx").setLevel(logging.WARNING)
            try:
                await all_roads(running, key, said)
            finally:
                logging.getLogger("httpx").setLevel(logging.NOTSET)

    asyncio.run(ask())
    assert len(said) > 80
    files = [file for file in home.rglob("*") if file.is_file()]
    assert any(file.name.startswith("audit-") for file in files)
    # Files of the home folder are all that the service writes.
    written = "".join(file.read_text(errors="replace") + file.name for file in files)
    printed = "".join(capfd.readouterr())
    for where, text in (("answer", "".join(said)), ("log", caplog.text), ("file", written), ("output", printed)):
        found = set(re.findall(r"ZQ\d\dCANARY", text, re.IGNORECASE))
        assert found == set(), where
    assert key not in "".join(said) + caplog.text + written + printed
    assert verify(default_folder()).faults == ()


def test_a_page_in_a_tag_is_no_page_in_a_report(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress, "Decoders", Direct)
    evil = slice_with(*["<b>x</b>"] * 9)

    async def ask() -> None:
        async with service([bundles.flat]) as running:
            answer = await running.client.post("/v1/predict?output=report", content=evil)
            assert answer.status_code == 200
            assert "<b>x</b>" not in answer.text
            assert answer.headers["content-security-policy"].startswith("default-src 'none'")
            assert "script-src" not in answer.headers["content-security-policy"]

    asyncio.run(ask())


@pytest.mark.slow
def test_a_flood_of_hostile_files_leaves_the_same_processes_and_answers_good_ones_meanwhile(
    cases: Entries, bundles: Bundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them five times, 16 side by side (faults.md 4.2)."""
    folder, entries = cases
    monkeypatch.setattr(decoders, "Decoder", functools.partial(decoders.Decoder, limits=LIMITS))

    async def flood() -> None:
        async with service([bundles.flat, bundles.volume], decoders=2) as running:
            side = asyncio.Semaphore(16)

            async def one(entry: dict[str, Any]) -> int:
                async with side:
                    return (await answer_to(running, folder, entry)).status_code

            await running.client.post("/v1/predict", content=png())
            before = memory_mib()
            statuses = asyncio.gather(*[one(entry) for _ in range(5) for entry in entries])
            waits = []
            while not statuses.done():
                began = time.monotonic()
                assert (await running.client.post("/v1/predict", content=png())).status_code == 200
                waits.append(time.monotonic() - began)
                await asyncio.sleep(0.02)
            assert max(await statuses) < 500
            assert np.median(waits) < 2
            assert running.ingress.room.taken == 0
            assert memory_mib() - before < 400
        assert verify(default_folder()).faults == ()

    asyncio.run(flood())


def memory_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20
