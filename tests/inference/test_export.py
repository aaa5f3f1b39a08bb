"""Exported files answer as the model does, for any number of images, or they are not there."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import tiny

from medray.bundle import BundleError, save
from medray.config import ConfigError
from medray.imaging.writer import write_png
from medray.inference import export, parity
from medray.inference.predictor import Predictor
from medray.networks.build import build
from medray.types import Array, InputError, NetworkIO

DYNUNET = {"name": "dynunet", "filters": [4, 8, 8], "strides": [[1], [2], [2]]}


def model(folder: Path, io: NetworkIO, network: dict[str, Any], **sections: object) -> Predictor:
    """An untrained model whose running statistics are not their initial values."""
    classes = sections.pop("classes", ["a", "b"])
    experiment = tiny(Path("data"), network=network, **sections)
    made = build(experiment.network, io, seed=4).network
    made.train()(torch.randn(8, io.in_channels, *io.size, generator=torch.Generator().manual_seed(0)))
    card = {
        "classes": classes,
        "multilabel": False,
        "outputs": io.outputs,
        "input": {"channels": io.in_channels, "size": list(io.size), "axes": io.spatial_dims, "dense": io.dense},
        "trust": {"temperature": 1.5, "conformal": None, "operating_points": []},
    }
    return Predictor(save(folder, experiment, made.state_dict(), card).folder)


def classifier(folder: Path, **sections: object) -> Predictor:
    return model(folder, NetworkIO(1, (16, 16), 1), {"name": "plain", "widths": [8, 8], "norm": "batch"}, **sections)


def segmenter(folder: Path, **sections: object) -> Predictor:
    task = {"name": "segmentation"}
    return model(folder, NetworkIO(1, (8, 8, 8), 2, dense=True), DYNUNET, task=task, **sections)


def picture(file: Path, size: int = 16, seed: int = 0) -> Path:
    write_png(file, np.random.default_rng(seed).integers(0, 255, (size, size)).astype(np.uint8))
    return file


def volume(file: Path, shape: tuple[int, ...] = (12, 17, 14)) -> Path:
    """A NIfTI file whose axes are not RAS+."""
    affine = np.diag([-1.0, 2, 1, 1])[[1, 0, 2, 3]]
    image = np.random.default_rng(0).integers(0, 255, shape).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(image, affine), file)
    return file


def random_inputs(predictor: Predictor, count: int) -> Array:
    io = predictor.bundle.io
    return np.random.default_rng(1).normal(size=(count, io.in_channels, *io.size)).astype(np.float32)


def test_torch_answers_as_the_model_for_any_batch(tmp_path: Path) -> None:
    predictor = classifier(tmp_path / "bundle")
    sample = picture(tmp_path / "x.png")
    card = export.to_torch(predictor, tmp_path / "model.pt2", [sample])
    extra = {"medray.json": ""}
    loaded = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    for count in (1, 3):
        images = random_inputs(predictor, count)
        with torch.no_grad():
            found = loaded(torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(found, predictor.scores(images), atol=1e-6)
    assert json.loads(extra["medray.json"])["bundle"] == predictor.bundle.digest
    assert card == json.loads((tmp_path / "model.pt2.export.json").read_text())
    assert card["sha256"] == hashlib.sha256((tmp_path / "model.pt2").read_bytes()).hexdigest()
    assert (len(card["parity"]["samples"]), card["trust"]["temperature"]) == (1, 1.5)
    assert card["parity"]["largest"] < 1e-5
    assert sample.name not in json.dumps(card), "a name may be a patient's"


@pytest.mark.parametrize("make", [classifier, pytest.param(segmenter, marks=pytest.mark.slow)])
def test_onnx_answers_as_the_model_and_says_what_it_is(tmp_path: Path, make: Any) -> None:
    predictor = make(tmp_path / "bundle")
    dense = predictor.task.dense
    sample = volume(tmp_path / "x.nii.gz") if dense else picture(tmp_path / "x.png")
    card = export.to_onnx(predictor, tmp_path / "model.onnx", [sample])
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    images = random_inputs(predictor, 3)
    found = session.run(["probabilities"], {"image": images})[0]
    np.testing.assert_allclose(found, predictor.scores(images), atol=1e-4)
    assert session.get_inputs()[0].shape == ["batch", 1, *predictor.bundle.io.size]
    graph = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(graph)
    assert [one.version for one in graph.opset_import if one.domain == ""] == [export.OPSET] == [card["opset"]]
    said = {entry.key: entry.value for entry in graph.metadata_props}
    assert json.loads(said["classes"]) == ["a", "b"]
    assert json.loads(said["preprocess"])["intensity"]["high"] == 255
    assert said["bundle"] == card["bundle"] == predictor.bundle.digest
    assert "Not a medical device" in said["intended_use"]
    assert "not calibrated" in said["outputs"]
    assert set(card["tools"]) == {"torch", *export.EXTRA}


def test_a_fixed_batch_takes_one_image(tmp_path: Path) -> None:
    predictor = classifier(tmp_path / "bundle")
    export.to_torch(predictor, tmp_path / "model.pt2", dynamic_batch=False)
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    assert loaded(torch.zeros(1, 1, 16, 16)).shape == (1, 2)
    with pytest.raises(AssertionError, match="Guard failed"):
        loaded(torch.zeros(2, 1, 16, 16))


@pytest.mark.parametrize("to", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_network_that_is_traced_for_one_batch_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    predictor = classifier(tmp_path / "bundle")
    right = export.Probabilities.forward
    monkeypatch.setattr(export.Probabilities, "forward", lambda self, image: right(self, image).view(len(image), 2))
    write, name = {"torch": (export.to_torch, "model.pt2"), "onnx": (export.to_onnx, "model.onnx")}[to]
    with pytest.raises(ConfigError, match=r"plain cannot be said in .*; try --no-dynamic-batch"):
        write(predictor, tmp_path / "out" / name)
    write(predictor, tmp_path / "out" / name, dynamic_batch=False)
    assert (tmp_path / "out" / name).exists()


def test_what_answers_otherwise_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = classifier(tmp_path / "bundle")
    right = export.Probabilities.forward
    monkeypatch.setattr(export.Probabilities, "forward", lambda self, image: right(self, image * 1.1))
    with pytest.raises(BundleError, match=r"at most 0\.0001"):
        export.to_torch(predictor, tmp_path / "out" / "model.pt2")
    assert list((tmp_path / "out").iterdir()) == []


def test_every_window_of_a_sample_counts(tmp_path: Path) -> None:
    """A fault that only the last corner of a volume shows is found, and where all agree nothing is."""
    predictor = segmenter(tmp_path / "bundle")
    sample = volume(tmp_path / "x.nii.gz")
    corner = predictor.prepare(sample)[1][0, -1, -1, -1]

    def faulty(images: Array) -> Array:
        hit = (images[:, 0, -1, -1, -1] == corner) & (images.std((1, 2, 3, 4)) > 0.5)
        return predictor.scores(images) + 0.5 * hit[:, None, None, None, None]

    assert parity.compare(predictor, predictor.scores, [sample]).as_dict()["largest"] == 0
    assert parity.compare(predictor, faulty).golden == 0
    with pytest.raises(BundleError, match=r"differs by 0\.5"):
        parity.compare(predictor, faulty, [sample])


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_no_number_is_no_parity(tmp_path: Path, wrong: float) -> None:
    predictor = classifier(tmp_path / "bundle")
    with pytest.raises(BundleError):
        parity.compare(predictor, lambda images: predictor.scores(images) * wrong)
    with pytest.raises(BundleError):
        parity.compare(predictor, lambda images: predictor.scores(images)[:, :1])


def test_mistakes_are_named_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = classifier(tmp_path / "bundle")
    (tmp_path / "there.pt2").write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        export.to_torch(predictor, tmp_path / "there.pt2")
    with pytest.raises(ConfigError, match=r"must end with \.pt2"):
        export.to_torch(predictor, tmp_path / "model.pt")
    with pytest.raises(InputError, match="wrong_shape"):
        export.to_torch(predictor, tmp_path / "model.pt2", [picture(tmp_path / "large.png", 20)])
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ConfigError, match=r"needs onnxscript: pip install 'medray\[export\]'"):
        export.to_onnx(predictor, tmp_path / "model.onnx")
    assert {file.name for file in tmp_path.iterdir()} == {"bundle", "there.pt2", "large.png"}
    assert (tmp_path / "there.pt2").read_text() == "mine"


def test_a_classical_classifier_is_not_exported_as_its_network(tmp_path: Path) -> None:
    predictor = classifier(tmp_path / "bundle")
    object.__setattr__(predictor.bundle, "card", {**predictor.bundle.card, "head": {"kind": "forest"}})
    with pytest.raises(ConfigError, match="a forest answers for this model"):
        export.to_torch(predictor, tmp_path / "model.pt2")
