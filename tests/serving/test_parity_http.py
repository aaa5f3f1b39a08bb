"""One road: what a network sees of an upload, and what comes of it, is the same over HTTP and in medray's Predictor.

Bit for bit where requests do not share passes; where they do, as near as another batch size rounds.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import nrrd
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from prediction_phantom import CLASSES
from series_phantom import content, dataset, noise, series
from service_phantom import Running, service

from medray.bundle import ModelBundle, save
from medray.config import parse
from medray.imaging.reader import read
from medray.imaging.writer import png_bytes, write_nifti
from medray.inference import outputs
from medray.inference.contract import build as contract_of
from medray.inference.contract import facts_of as facts_of_image
from medray.inference.ensemble import facts_of
from medray.inference.features import features
from medray.inference.outputs import Wanted
from medray.inference.predictor import Predictor
from medray.networks.build import build
from medray.types import Array, Case, NetworkIO, Prediction, SeriesRef

AT_ONCE = 16
SCORES, VOXELS = 1e-5, 1e-4
"""What sharing passes may change: of probabilities, and of the voxels of a label map the share."""
SIZE = {2: (16, 16), 3: (8, 8, 8)}
REGIONS = {"any": ["organ", "lesion"], "core": ["lesion"]}
TRUST: dict[str, Any] = {"temperature": 1.7, "conformal": None, "interval": None, "operating_points": []}


@dataclass(frozen=True)
class Model:
    """A small model to be made."""

    task: str
    axes: int
    network_axes: int = 0
    sections: tuple[tuple[str, Any], ...] = ()
    outputs: int = 1
    classes: tuple[str, ...] = ("a", "b")
    contract: bool = False
    trust: bool = False


def dense(axes: int, regions: bool = False, **more: Any) -> Model:
    task = {"name": "segmentation", **({"regions": REGIONS} if regions else {})}
    window = {"size": list(SIZE[more.pop("network_axes", axes)]), **more.pop("window", {})}
    sections = {"task": task, "window": window, **more.pop("sections", {})}
    return Model(
        "segmentation",
        axes,
        len(window["size"]),
        tuple(sections.items()),
        2 if regions else 3,
        CLASSES,
        more.pop("contract", False),
    )


def numbers(axes: int) -> Model:
    task = {"name": "regression", "centre": [50.0, 3.0], "scale": [12.0, 0.5]}
    return Model("regression", axes, axes, (("task", task),), 2, ("age", "width"))


MODELS = {
    "classes-2d": Model("classification", 2, trust=True),
    "contract-2d": Model("classification", 2, contract=True),
    "numbers-2d": numbers(2),
    "mask-2d": dense(2, contract=True),
    "regions-2d": dense(2, regions=True, window={"flips": [0, 1]}),
    "classes-3d": Model("classification", 3),
    "numbers-3d": numbers(3),
    "mask-3d": dense(3, contract=True),
    "regions-3d": dense(3, regions=True),
    "spacing-3d": dense(3, sections={"preprocess": {"spacing_mm": [1.1, 0.9, 2.0]}}),
    "slices-3d": dense(3, network_axes=2, window={"neighbours": 1, "slice_axis": 2}),
}


def made(folder: Path, name: str) -> ModelBundle:
    """An untrained model; of a segmentation one whose masks hold some of every class."""
    model = MODELS[name]
    size = SIZE[model.network_axes or model.axes]
    is_dense = model.task == "segmentation"
    sections = dict(model.sections)
    preprocess = {"channels": "gray", "intensity": {"method": "range", "low": -1000, "high": 3000}}
    if not is_dense:
        preprocess |= {"size": list(size), "fit": "stretch"}
    plain = {"name": "plain", "widths": [8, 8], "norm": "none"}
    unet = {"name": "unet", "channels": [4, 8], "residual_units": 0}
    experiment = parse(
        {
            "dataset": {"name": "folder", "path": "unused"},
            "split": {"method": "fraction", "val": 0.2, "test": 0.2},
            "name": name,
            "task": {"name": model.task},
            "network": unet if is_dense else plain,
            **sections,
            "preprocess": {**preprocess, **sections.get("preprocess", {})},
        }
    )
    channels = 1 + 2 * experiment.window.neighbours if len(size) < model.axes else 1
    network = build(experiment.network, NetworkIO(channels, size, model.outputs, dense=is_dense), seed=3).network
    with torch.no_grad():
        window = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0)) * 0.3
        bias = next(part for part in reversed(list(network.parameters())) if part.shape == (model.outputs,))
        answer = network.eval()(window).transpose(0, 1).flatten(1)
        bias -= answer.median(1).values if is_dense else answer.mean(1)
    entry = {"channels": channels, "size": list(size), "axes": model.axes, "dense": is_dense}
    card: dict[str, Any] = {
        "classes": list(model.classes),
        "multilabel": False,
        "outputs": model.outputs,
        "input": entry,
        **({"trust": TRUST} if model.trust else {}),
    }
    weights = network.state_dict()
    bundle = save(folder / "plain" / name, experiment, weights, card)
    if not model.contract:
        return bundle
    cases = [read(file) for file in some(model.axes, 24).values()]
    known = contract_of([facts_of_image(case) for case in cases], features(Predictor(bundle.folder), cases))
    return save(folder / "known" / name, experiment, weights, {**card, "contract": known.as_dict()}, known.files())


# Files


def nifti(folder: Path, volume: Array) -> bytes:
    """.nii.gz on a slanted grid that runs to the left and back."""
    affine = np.array([[-1.2, 0.1, 0, 5], [0.1, -0.9, 0.2, -7], [0, 0.1, 2.0, 9], [0, 0, 0, 1]])
    write_nifti(folder / "x.nii.gz", volume, affine)
    return (folder / "x.nii.gz").read_bytes()


def nrrd_of(volume: Array) -> bytes:
    file = io.BytesIO()
    space = {"space": "LPS", "space directions": np.diag([1.0, -1.5, 2.0]), "space origin": [1.0, 2.0, 3.0]}
    nrrd.write(file, volume, {**space, "encoding": "gzip"})
    return file.getvalue()


def npy(array: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def jpeg(image: Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90)
    return file.getvalue()


def zipped(members: Sequence[bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for number, member in enumerate(reversed(members)):
            packed.writestr(f"exam/IM{number}", member)
    return file.getvalue()


def files(folder: Path, axes: int) -> dict[str, bytes]:
    """An upload of every kind, by its kind."""
    draw = np.random.default_rng(1)
    if axes == 2:
        grey = draw.integers(0, 256, (37, 29)).astype(np.uint8)
        return {
            "png": png_bytes(grey),
            "png of 16 bits": png_bytes(draw.integers(0, 4000, (37, 29)).astype(np.uint16)),
            "png in colour": png_bytes(draw.integers(0, 256, (20, 33, 3)).astype(np.uint8)),
            "jpeg": jpeg(grey),
            "dicom": content(dataset(draw.integers(-1000, 3000, (30, 26)).astype(np.int16))),
            "npy": npy(draw.integers(-1000, 3000, (21, 40)).astype(np.int16)),
        }
    volume = draw.integers(-1000, 3000, (19, 14, 11)).astype(np.int16)
    packed = nifti(folder, volume)
    return {
        "zip": zipped(series(noise(9, 15, 13), FrameOfReferenceUID="1.2.9")),
        "nii.gz": packed,
        "nii": gzip.decompress(packed),
        "nrrd": nrrd_of(volume),
        "npy": npy(volume.astype(np.float32)),
    }


def some(axes: int, count: int) -> dict[int, bytes]:
    """Different images of one kind and shape."""
    shape = (30, 26) if axes == 2 else (12, 10, 9)
    return {k: npy(np.random.default_rng(k).integers(-1000, 3000, shape).astype(np.int16)) for k in range(count)}


def kinds(axes: int) -> list[str]:
    two = ["png", "png of 16 bits", "png in colour", "jpeg", "dicom", "npy"]
    return two if axes == 2 else ["zip", "nii.gz", "nii", "nrrd", "npy"]


PAIRS = [
    (name, kind)
    for name, model in MODELS.items()
    for kind in kinds(model.axes)
    if not (name == "spacing-3d" and kind == "npy")  # which has no spacing
]


# Both roads


class Road(NamedTuple):
    """What came of an upload over HTTP."""

    seen: list[Array]
    """What the network was given, pass by pass."""
    body: dict[str, Any]
    mask: httpx.Response | None


def watched(network: torch.nn.Module) -> list[Array]:
    """A list of what a network is given from now on."""
    seen: list[Array] = []

    def keep(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
        if not inputs[0].is_meta:
            seen.append(inputs[0].detach().clone().numpy())

    network.register_forward_pre_hook(keep)
    return seen


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelBundle]:
    return {name: made(tmp_path_factory.mktemp("models"), name) for name in MODELS}


@pytest.fixture(scope="module")
def predictors(bundles: dict[str, ModelBundle]) -> dict[str, Predictor]:
    return {name: Predictor(bundle.folder) for name, bundle in bundles.items()}


@pytest.fixture(scope="module")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], bytes]:
    folder = tmp_path_factory.mktemp("files")
    return {(axes, kind): source for axes in (2, 3) for kind, source in files(folder, axes).items()}


@pytest.fixture(scope="module")
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The fixtures of a module are made before a test has its home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDRAY_HOME", str(tmp_path_factory.mktemp("home")))
        yield


async def one(running: Running, name: str, source: bytes, seen: list[Array]) -> Road:
    seen.clear()
    answer = await running.client.post(f"/v1/predict?model={name}&keep=true", content=source)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    mask = await running.client.get(body["links"]["mask"]) if "mask" in body["links"] else None
    return Road(list(seen), body, mask)


@pytest.fixture(scope="module")
def http(
    bundles: dict[str, ModelBundle],
    uploads: dict[tuple[int, str], bytes],
    _own_home: None,
) -> dict[tuple[str, str], Road]:
    """Every model asked about every kind of file, without sharing passes."""

    async def ask() -> dict[tuple[str, str], Road]:
        folders = [bundle.folder for bundle in bundles.values()]
        async with service(folders, batching=False) as running:
            seen = {each.entry.name: watched(each.predictor.network) for each in running.engine._residents.values()}
            return {
                (name, kind): await one(running, name, uploads[MODELS[name].axes, kind], seen[name])
                for name, kind in PAIRS
            }

    return asyncio.run(ask())


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_the_network_sees_over_http_what_the_predictor_shows_it(
    http: dict[tuple[str, str], Road],
    predictors: dict[str, Predictor],
    uploads: dict[tuple[int, str], bytes],
    name: str,
    kind: str,
    tmp_path: Path,
) -> None:
    """Also of a file of that name on a disk."""
    predictor, source = predictors[name], uploads[MODELS[name].axes, kind]
    seen = watched(predictor.network)
    predictor.predict(source)
    over_http = http[name, kind].seen
    assert len(over_http) == len(seen) > 0
    for ours, theirs in zip(seen, over_http, strict=True):
        assert ours.dtype == theirs.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs, strict=True)
    file = tmp_path / f"case.{kind.split()[0]}"
    file.write_bytes(source)
    np.testing.assert_array_equal(predictor.prepare(file)[1], predictor.prepare(source)[1], strict=True)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_the_answer_over_http_is_the_predictors_to_the_last_bit(
    http: dict[tuple[str, str], Road],
    predictors: dict[str, Predictor],
    uploads: dict[tuple[int, str], bytes],
    name: str,
    kind: str,
) -> None:
    expected = predictors[name].predict(uploads[MODELS[name].axes, kind])
    body = http[name, kind].body
    assert body["labels"] == list(expected.labels)
    assert [one["word"] for one in body["warnings"]] == list(expected.warnings)
    assert body["quality"] == {name: float(f"{value:.4g}") for name, value in expected.quality.items()}
    assert [each["value"] for each in body.get("values", ())] == (
        expected.scores.tolist() if MODELS[name].task == "regression" else []
    )
    assert [each["probability"] for each in body.get("predictions", ())] == (
        expected.scores.tolist() if MODELS[name].task == "classification" else []
    )
    if expected.uncalibrated is not None:
        assert [each["uncalibrated"] for each in body["predictions"]] == expected.uncalibrated.tolist()
        assert expected.uncalibrated.tolist() != expected.scores.tolist()
    volumes = {each["label"]: each["volume"] for each in body.get("structures", ())}
    assert {name: volume for name, volume in volumes.items() if volume} == {
        name: float(f"{volume:.6g}") for name, volume in expected.volumes.items() if volume
    }


def expected_mask(predictor: Predictor, source: bytes, folder: Path) -> dict[str, bytes]:
    """The files that `medray predict` writes."""
    raw = predictor.read(source)
    unpacked, out = folder / "in", folder / "out"
    unpacked.mkdir()
    out.mkdir()
    where: Path | SeriesRef = unpacked / "case"
    if source.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(source)) as packed:
            packed.extractall(unpacked)
        where = SeriesRef(tuple(sorted(path for path in unpacked.rglob("*") if path.is_file())))
    else:
        (unpacked / "case").write_bytes(source)
        if source[128:132] == b"DICM":
            where = SeriesRef((unpacked / "case",))
    outputs.write(out, raw, where, predictor.predict(raw), facts_of([predictor.bundle]), Wanted(overlay=False))
    return {file.name: file.read_bytes() for file in out.iterdir()}


@pytest.mark.parametrize(("name", "kind"), [pair for pair in PAIRS if MODELS[pair[0]].task == "segmentation"])
def test_the_mask_over_http_is_the_file_that_predict_writes(
    http: dict[tuple[str, str], Road],
    predictors: dict[str, Predictor],
    uploads: dict[tuple[int, str], bytes],
    name: str,
    kind: str,
    tmp_path: Path,
) -> None:
    found = http[name, kind].mask
    assert found is not None
    assert found.status_code == 200, found.text
    expected = expected_mask(predictors[name], uploads[MODELS[name].axes, kind], tmp_path)
    if found.content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(found.content)) as packed:
            assert {each: packed.read(each) for each in packed.namelist()} == expected
        return
    (only,) = expected.values()
    if kind in ("zip", "dicom"):  # whose ids and times are of their own
        ours, theirs = (pydicom.dcmread(io.BytesIO(each)) for each in (only, found.content))
        assert len(theirs.PixelData) > 0
        assert ours.PixelData == theirs.PixelData
        assert [str(each.SegmentLabel) for each in ours.SegmentSequence] == [
            str(each.SegmentLabel) for each in theirs.SegmentSequence
        ]
    else:
        assert found.content == only
    mask = predictors[name].predict(uploads[MODELS[name].axes, kind]).mask
    assert mask is not None
    assert 0 < (mask != 0).mean() < 1, "there is something to be equal in"


# At once


class Gate:
    """Holds up a network's first pass until others wait behind it, so that they share the next ones."""

    def __init__(self, running: Running, name: str) -> None:
        self._engine = running.engine
        self._go_on, self._begun = threading.Event(), threading.Event()
        (resident,) = [each for each in running.engine._residents.values() if each.entry.name == name]
        resident.predictor.network.register_forward_pre_hook(self._hold)

    def _hold(self, *_: object) -> None:
        self._begun.set()
        assert self._go_on.wait(60)

    async def closed(self) -> None:
        """Returns when the first pass stands."""
        await asyncio.to_thread(self._begun.wait, 60)

    async def open_when(self, asked: int) -> None:
        """`asked` images wait."""
        for _ in range(6000):
            if self._engine.waiting >= asked:
                break
            await asyncio.sleep(0.005)
        self._go_on.set()


async def all_at_once(
    name: str, folder: Path, ask: Callable[[Running, int], Any], count: int = AT_ONCE
) -> list[httpx.Response]:
    async with service([folder], decoders=2) as running:
        gate = Gate(running, name)
        asked = [asyncio.ensure_future(ask(running, 0))]
        await gate.closed()
        asked += [asyncio.ensure_future(ask(running, number)) for number in range(1, count)]
        await gate.open_when(count - 1)
        return list(await asyncio.gather(*asked))


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.task != "segmentation"])
def test_scores_of_requests_that_share_passes_agree(
    bundles: dict[str, ModelBundle], predictors: dict[str, Predictor], name: str
) -> None:
    sources = some(MODELS[name].axes, AT_ONCE)

    async def ask(running: Running, number: int) -> httpx.Response:
        return await running.client.post("/v1/predict", content=sources[number])

    answers = asyncio.run(all_at_once(name, bundles[name].folder, ask))
    bodies = [answer.json() for answer in answers]
    assert [body["batch"] for body in bodies] == [1, *[AT_ONCE - 1] * (AT_ONCE - 1)], "they did share passes"
    scale = np.array([12.0, 0.5]) if MODELS[name].task == "regression" else 1.0
    seen = []
    for number, body in enumerate(bodies):
        expected = predictors[name].predict(sources[number])
        found = [each.get("probability", each.get("value")) for each in body.get("predictions") or body["values"]]
        seen.append(found)
        np.testing.assert_allclose(np.array(found) / scale, expected.scores / scale, rtol=0, atol=SCORES)
        assert body["labels"] == list(expected.labels)
    assert len({tuple(each) for each in seen}) == AT_ONCE, "each has its own"


def voxels_of(content: bytes) -> Array:
    """The layers of a mask's file."""
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            return np.stack([voxels_of(packed.read(name)) for name in sorted(packed.namelist())])
    return read(content).image[0]


@pytest.mark.parametrize("name", [n for n, m in MODELS.items() if m.task == "segmentation" and n != "spacing-3d"])
def test_masks_of_requests_that_share_passes_agree(
    bundles: dict[str, ModelBundle], predictors: dict[str, Predictor], name: str
) -> None:
    sources = some(MODELS[name].axes, AT_ONCE)

    async def ask(running: Running, number: int) -> httpx.Response:
        answer = await running.client.post("/v1/predict", content=sources[number])
        body = answer.json()
        assert body["batch"] <= predictors[name].window.batch
        return await running.client.get(body["links"]["mask"])

    answers = asyncio.run(all_at_once(name, bundles[name].folder, ask))
    found = np.stack([voxels_of(answer.content) for answer in answers])
    expected = np.stack([answered(predictors[name], sources[number]) for number in range(AT_ONCE)])
    assert found.shape == expected.shape
    assert (found != expected).mean() <= VOXELS
    assert len({each.tobytes() for each in found}) == AT_ONCE, "each has its own"


def answered(predictor: Predictor, source: bytes) -> Array:
    mask = predictor.predict(source).mask
    assert mask is not None
    return mask.astype(np.uint8)


def test_a_form_and_a_bare_body_are_the_same_upload(
    bundles: dict[str, ModelBundle], uploads: dict[tuple[int, str], bytes]
) -> None:
    async def ask() -> list[dict[str, Any]]:
        async with service([bundles["classes-2d"].folder]) as running:
            source = uploads[2, "dicom"]
            bare = await running.client.post("/v1/predict", content=source)
            form = await running.client.post("/v1/predict", files={"file": ("scan.dcm", source)})
            return [bare.json(), form.json()]

    bare, form = asyncio.run(ask())
    own = ("request_id", "timings_ms")
    assert {key: value for key, value in bare.items() if key not in own} == {
        key: value for key, value in form.items() if key not in own
    }


def test_tensors_over_v2_get_the_scores_of_predict(
    bundles: dict[str, ModelBundle], predictors: dict[str, Predictor], uploads: dict[tuple[int, str], bytes]
) -> None:
    predictor, source = predictors["classes-2d"], uploads[2, "png"]
    expected: Prediction = predictor.predict(source)
    case: tuple[Case, Array] = predictor.prepare(source)
    tensor = {"name": "input", "datatype": "FP32", "shape": [1, 1, 16, 16], "data": case[1].ravel().tolist()}

    async def ask() -> dict[str, Any]:
        async with service([bundles["classes-2d"].folder]) as running:
            answer = await running.client.post("/v2/models/classes-2d/infer", json={"inputs": [tensor]})
            body: dict[str, Any] = answer.json()
            return body

    assert asyncio.run(ask())["outputs"][0]["data"] == expected.scores.tolist()
