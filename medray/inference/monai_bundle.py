"""A model as a MONAI bundle: a folder that `python -m monai.bundle run` uses without medray.

configs/metadata.json   what goes in and comes out, by MONAI's schema
configs/inference.json  preprocessing, network, inferer, evaluator
models/model.pt         the state dict alone, for torch.load(weights_only=True)
docs/README.md  LICENSE export.json

The network gives logits there, as MONAI's do. Preprocessing is said in MONAI's transforms where these do the same;
where they do not (medray resamples spacing and size in one step), the bundle takes what medray has prepared.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medray.bundle import BundleError
from medray.inference.export import card_of, require_network, staged
from medray.inference.monai_config import Road, channel_names, inference
from medray.inference.monai_network import definition, filled
from medray.inference.monai_words import LICENSE, metadata, readme
from medray.inference.parity import TOLERANCE, Parity, compare, gap
from medray.inference.predictor import Predictor
from medray.types import Array

FILES = ("configs/metadata.json", "configs/inference.json", "models/model.pt")
TOOLS = ("torch", "torchvision", "monai", "numpy")
READ = {2: (".png",), 3: (".nii", ".nii.gz")}
"""What MONAI reads as medray does: axes of the images -> endings of their files."""


def to_monai(predictor: Predictor, out: Path, samples: Sequence[Path] = ()) -> dict[str, Any]:
    """Write a MONAI bundle and its card (export.json in it), which is returned.

    Args:
        predictor: the model, on the CPU.
        out: the folder, which does not exist yet.
        samples: images as they lie in their files, to hold both models, and where MONAI's transforms prepare them
            both roads, against each other.

    Raises:
        ConfigError: no class of MONAI or torchvision is this network.
        BundleError: the written network, or of whole images its road, answers otherwise; nothing is left of it.
        InputError: a sample cannot be read, or is not what the model takes.
    """
    from monai.bundle import ConfigParser

    require_network(predictor.bundle)
    names = channel_names(predictor)
    road = Road.of(predictor)
    said = definition(predictor.bundle.experiment.network, predictor.network, predictor.bundle.io)
    with staged(out) as part, warnings.catch_warnings(action="ignore"):  # MONAI's are about its own parts
        for folder in ("configs", "models", "docs"):
            (part / folder).mkdir(parents=True)
        _write(part / FILES[1], inference(predictor, road, said))
        parser = ConfigParser()
        parser.read_config(part / FILES[1])
        parser["bundle_root"], parser["device"] = str(part), "cpu"
        with torch.random.fork_rng(devices=[]):
            plain = parser.get_parsed_content("network_def")
        torch.save(filled(plain, predictor.network), part / FILES[2])
        plain.load_state_dict(torch.load(part / FILES[2], weights_only=True))
        parity = compare(predictor, lambda images: _answer(predictor, plain.eval(), images), samples)
        chain = () if road.unsaid else _chain(predictor, parser, plain, samples)
        _write(part / FILES[0], metadata(predictor, names, road.unsaid, said["_target_"]))
        (part / "LICENSE").write_text(LICENSE, encoding="utf-8")
        (part / "docs" / "README.md").write_text(readme(predictor, road.unsaid, parity, chain), encoding="utf-8")
        return _carded(predictor, part, road, parity, chain)


def _answer(predictor: Predictor, plain: nn.Module, images: Array) -> Array:
    with torch.inference_mode():
        return np.asarray(predictor.task.predict(plain, torch.from_numpy(images))[1].numpy())


def _chain(predictor: Predictor, parser: Any, plain: nn.Module, samples: Sequence[Path]) -> tuple[float, ...]:
    """The largest difference of a probability on each sample that MONAI reads, from its file to its answer.

    Raises:
        BundleError: above `TOLERANCE`, but for a dense network: medray sees a small image at once where MONAI moves
            its window, so there the difference is only told.
    """
    prepare, inferer, network = (parser.get_parsed_content(name) for name in ("preprocessing", "inferer", "network"))
    network.eval()
    found = []
    for sample in (one for one in samples if one.name.endswith(READ[predictor.bundle.axes])):
        image = prepare({"image": str(sample)})["image"].as_tensor()
        own = predictor.prepare(sample)[1]
        with torch.inference_mode():
            if predictor.task.dense:
                answer, expected = inferer(image[None], network)[0].numpy(), predictor.whole(own).numpy()
            else:
                answer, expected = _answer(predictor, plain, image[None].numpy()), predictor.scores(own[None])
        found.append(gap(expected, answer))
    worst = float(np.max([0.0, *found]))
    # Of a dense network nothing but NaN and another grid is refused.
    if not worst <= (1.0 if predictor.task.dense else TOLERANCE):
        raise BundleError(f"MONAI's transforms prepare a sample so that its answer differs by {worst:.2g}")
    return tuple(found)


def _carded(predictor: Predictor, part: Path, road: Road, parity: Parity, chain: tuple[float, ...]) -> dict[str, Any]:
    sums = {name: hashlib.sha256((part / name).read_bytes()).hexdigest() for name in FILES}
    told = {**parity.as_dict(), "chain": list(chain), "prepared_by_medray": list(road.unsaid)}
    card = {"folder": part.name, "sha256": sums, **card_of(predictor, told, TOOLS)}
    card["output"] = {"name": "pred", "outputs": predictor.task.outputs, "logits_of": channel_names(predictor)}
    _write(part / "export.json", card)
    return card


def _write(file: Path, tree: Any) -> None:
    file.write_text(json.dumps(tree, indent=2, allow_nan=False), encoding="utf-8")
