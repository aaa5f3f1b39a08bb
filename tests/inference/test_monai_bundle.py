"""A MONAI bundle runs by MONAI's own program, passes its checks, and says what medray says."""

from __future__ import annotations

import copy
import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, run, verify_metadata, verify_net_in_out
from test_export import DYNUNET, classifier, model, picture, segmenter, volume

from medray.bundle import BundleError
from medray.config import ConfigError, load_plugin
from medray.inference import monai_network
from medray.inference.monai_bundle import to_monai
from medray.inference.monai_network import FAMILIES, definition, filled
from medray.inference.predictor import Predictor
from medray.networks.build import build
from medray.types import NetworkIO

pytestmark = pytest.mark.filterwarnings("ignore")  # MONAI's own

TEXT, NUMBERS = {"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "number"}}
TENSOR = {
    "type": "object",
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "is_patch_data"],
    "properties": {
        "type": {"enum": ["image", "series", "tuples", "probabilities"]},
        "format": TEXT,
        "modality": TEXT,
        "num_channels": {"type": "integer", "minimum": 1},
        "spatial_shape": {"type": "array", "items": {"type": ["string", "integer"]}},
        "dtype": TEXT,
        "value_range": NUMBERS,
        "is_patch_data": {"type": "boolean"},
        "channel_def": {"type": "object", "additionalProperties": TEXT, "minProperties": 1},
    },
}
PACKAGES = {"type": "object", "additionalProperties": TEXT}
SENTENCES = ("version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors")
FORMATS = {"type": "object", "minProperties": 1, "additionalProperties": TENSOR}
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$comment": "Written from what MONAI's bundle specification (docs/source/mb_specification.rst) calls mandatory. "
    "It stands for the published schema, which has to be downloaded, and is not a copy of it.",
    "type": "object",
    "required": [*SENTENCES, "schema", "copyright", "required_packages_version", "network_data_format"],
    "properties": {
        **dict.fromkeys(SENTENCES, TEXT),
        **dict.fromkeys(("schema", "copyright", "intended_use", "data_source", "data_type"), TEXT),
        "required_packages_version": PACKAGES,
        "optional_packages_version": PACKAGES,
        "changelog": PACKAGES,
        "references": {"type": "array", "items": TEXT},
        "eval_metrics": {"type": "object", "additionalProperties": {"type": "number"}},
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "properties": {"inputs": FORMATS, "outputs": FORMATS},
        },
    },
}
NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]] = {
    "resnet": ({"depth": 10}, (32, 32), (16, 16, 32)),
    "resnet small": ({"depth": 50, "stem": "small"}, (16, 16), ()),
    "densenet": ({}, (32, 32), (32, 32, 32)),
    "seresnet": ({}, (), (16, 16, 32)),
    "alexnet": ({}, (64, 64), ()),
    "convnext": ({}, (32, 32), ()),
    "efficientnet": ({}, (32, 32), ()),
    "mobilenet": ({}, (32, 32), ()),
    "vgg": ({"depth": 11}, (32, 32), ()),
    "unet": ({"channels": (4, 8, 12), "dropout": 0.1}, (16, 24), (8, 8, 12)),
    "attentionunet": ({"channels": (4, 8, 12), "dropout": 0.1}, (16, 24), (8, 8, 12)),
    "dynunet": (
        {"filters": (4, 8, 12), "strides": ((1,), (2,), (2,)), "deep_supervision": 1, "norm": "group"},
        (16, 24),
        (8, 8, 12),
    ),
    "dynunet residual": (
        {"filters": (4, 8, 12), "strides": ((1,), (2,), (1,)), "residual": True, "dropout": 0.1},
        (16, 24),
        (),
    ),
    "segresnet": ({"filters": 8, "blocks_down": (1, 1, 1), "blocks_up": (1, 1)}, (16, 24), (8, 8, 12)),
    "swinunetr": ({"features": 12, "depths": (1, 1, 1, 1), "attention_window": 2}, (32, 64), (32, 32, 64)),
    "vnet": ({}, (32, 32), (16, 16, 32)),
}
QUICK = {("resnet", 2), ("unet", 3), ("dynunet", 3), ("dynunet residual", 2), ("segresnet", 3), ("attentionunet", 2)}
CASES = [
    pytest.param(name, options, size, id=f"{name}-{len(size)}d", marks=[] if quick else [pytest.mark.slow])
    for name, (options, *sizes) in NETWORKS.items()
    for size in sizes
    if size
    for quick in [(name, len(size)) in QUICK]
]


@pytest.mark.parametrize(("name", "options", "size"), CASES)
def test_a_class_of_monai_is_the_network(name: str, options: dict[str, Any], size: tuple[int, ...]) -> None:
    family = load_plugin("networks", name.split()[0])
    dense = getattr(family, "DENSE", False)
    io = NetworkIO(2 if name == "vnet" else 1 if name.startswith("resnet") or len(size) == 3 else 3, size, 2, dense)
    cfg = family.Config(**options)
    network = build(cfg, io, seed=0).network
    for key, tensor in network.state_dict().items():
        if key.endswith("running_mean"):
            tensor.normal_(generator=torch.Generator().manual_seed(0))
    parser = ConfigParser(json.loads(json.dumps({"network_def": definition(cfg, network, io)})))
    plain = parser.get_parsed_content("network_def")
    state = filled(plain, network)
    again = copy.deepcopy(plain)
    again.load_state_dict(state, strict=True)
    images = torch.randn(2, io.in_channels, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = network.eval()(images), again.eval()(images)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_families_are_all_tried() -> None:
    assert {name.split()[0] for name in NETWORKS} == set(FAMILIES)


def checked(folder: Path, schema: Path) -> dict[str, Any]:
    """The metadata, once MONAI's own checks have passed."""
    schema.write_text(json.dumps(SCHEMA))
    meta, config = str(folder / "configs" / "metadata.json"), str(folder / "configs" / "inference.json")
    verify_metadata(meta_file=meta, filepath=schema)
    verify_net_in_out(net_id="network_def", meta_file=meta, config_file=config, device="cpu")
    return dict(json.loads(Path(meta).read_text()))


def ran(folder: Path, data: Path) -> Path:
    """Where MONAI has put its answers."""
    run(
        config_file=str(folder / "configs" / "inference.json"),
        meta_file=str(folder / "configs" / "metadata.json"),
        bundle_root=str(folder),
        dataset_dir=str(data),
        device="cpu",
    )
    return folder / "eval"


def probabilities(file: Path) -> list[list[float]]:
    with file.open() as stream:
        return [[float(cell) for cell in row[1:]] for row in csv.reader(stream)]


@pytest.mark.parametrize("method", ["range", "percentile", "zscore"])
def test_pictures_go_from_file_to_answer(tmp_path: Path, method: str) -> None:
    bounds = {"low": 20, "high": 200} if method == "range" else {}
    preprocess = {"intensity": {"method": method, **bounds}}
    three = NetworkIO(1, (32, 32), 3)
    classes = ["a", "b", "c"]
    predictor = model(tmp_path / "b", three, {"name": "resnet", "depth": 10}, classes=classes, preprocess=preprocess)
    (tmp_path / "data").mkdir()
    files = [picture(tmp_path / "data" / f"{seed}.png", 32, seed) for seed in range(2)]
    card = to_monai(predictor, tmp_path / "out", files)
    assert len(card["parity"]["chain"]) == 2
    assert max(card["parity"]["chain"]) < 1e-5
    meta = checked(tmp_path / "out", tmp_path / "schema.json")
    assert meta["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "a", "1": "b", "2": "c"}
    found = probabilities(ran(tmp_path / "out", tmp_path / "data") / "predictions.csv")
    expected = [predictor.scores(predictor.prepare(file)[1][None])[0] for file in files]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert {"LICENSE", "export.json", "docs/README.md", "models/model.pt"} <= {
        str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*")
    }


def test_volumes_go_from_file_to_mask_on_their_own_axes(tmp_path: Path) -> None:
    predictor = segmenter(tmp_path / "b")
    (tmp_path / "data").mkdir()
    file = volume(tmp_path / "data" / "v.nii.gz")
    card = to_monai(predictor, tmp_path / "out", [file])
    assert card["parity"]["chain"][0] < 1e-5, "larger than 1.3 windows: both lay the same windows"
    checked(tmp_path / "out", tmp_path / "schema.json")
    (made,) = ran(tmp_path / "out", tmp_path / "data").iterdir()
    mask, image = nibabel.load(made), nibabel.load(file)
    np.testing.assert_allclose(mask.affine, image.affine)
    expected = predictor.predict(file).mask
    assert expected is not None
    assert 0 < expected.mean() < 1
    assert (np.asarray(mask.dataobj) == expected).mean() > 0.999


def test_what_monai_cannot_prepare_medray_prepares(tmp_path: Path) -> None:
    network = {"name": "resnet", "depth": 10}
    preprocess = {"size": [16, 16], "intensity": {"method": "range", "low": 0, "high": 255}}
    predictor = model(tmp_path / "b", NetworkIO(1, (16, 16), 1), network, preprocess=preprocess)
    sample = picture(tmp_path / "x.png", 40)
    card = to_monai(predictor, tmp_path / "out", [sample])
    assert card["parity"]["prepared_by_medray"] == ["preprocess.size"]
    assert card["parity"]["chain"] == []
    assert "preprocess.size" in (tmp_path / "out" / "docs" / "README.md").read_text()
    checked(tmp_path / "out", tmp_path / "schema.json")
    (tmp_path / "data").mkdir()
    image = predictor.prepare(sample)[1]
    np.save(tmp_path / "data" / "x.npy", image)
    found = probabilities(ran(tmp_path / "out", tmp_path / "data") / "predictions.csv")
    np.testing.assert_allclose(found, predictor.scores(image[None])[:, 1:], atol=1e-5)


def test_networks_that_no_class_is_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'plain'; families that are: alexnet, .*unet, vgg, vnet"):
        to_monai(classifier(tmp_path / "plain"), tmp_path / "out")
    padded = model(tmp_path / "d", NetworkIO(1, (10, 8), 2, dense=True), DYNUNET, task={"name": "segmentation"})
    with pytest.raises(ConfigError, match="window of 10x8 to multiples of 4x4"):
        to_monai(padded, tmp_path / "out")
    grey = model(tmp_path / "g", NetworkIO(1, (32, 32), 1), {"name": "mobilenet"})
    with pytest.raises(ConfigError, match="takes 3 channels in 2D, this one 1"):
        to_monai(grey, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_class_than_the_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor: Predictor = segmenter(tmp_path / "b")
    right = FAMILIES["dynunet"]
    wrong = {
        "other weights": lambda cfg, io: right(cfg, io) | {"res_block": True},
        "differs by": lambda cfg, io: right(cfg, io) | {"act_name": "relu"},
    }
    for message, make in wrong.items():
        monkeypatch.setattr(monai_network, "FAMILIES", {"dynunet": make})
        with pytest.raises(BundleError, match=message):
            to_monai(predictor, tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_monais_command_line_passes_it(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    to_monai(segmenter(tmp_path / "b"), folder)
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    files = ["--meta_file", "configs/metadata.json"]
    verbs = (
        ["verify_net_in_out", "--net_id", "network_def", "--config_file", "configs/inference.json", "--device", "cpu"],
        ["verify_metadata", "--filepath", str(tmp_path / "schema.json")],
    )
    for verb in verbs:
        subprocess.run([sys.executable, "-m", "monai.bundle", *verb, *files], cwd=folder, check=True)
