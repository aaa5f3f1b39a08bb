"""A model for other programs: as ONNX and as torch.export (.pt2), each held against the model before it is kept.

Both take what preprocessing gives, `image` (B, C, *S) float32, of a dense network one window, and give `probabilities`
(B, K) or (B, K, *S): the activation is inside, calibration is not, so that the file answers as golden.npz does.
Preprocessing, calibration, decision and the way back to the patient's grid stay with medray; the card beside the file
says what they are.

An ONNX file is data. `torch.export.load` is not so: it reads weights and graph as data but unpickles what a file
asks it to, so load only a .pt2 whose sha256 is the one in its card.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from medray.bundle import ModelBundle
from medray.config import ConfigError
from medray.inference.parity import Answer, Parity, compare
from medray.inference.predictor import Predictor
from medray.types import Array

OPSET = 18
"""The ONNX operators that torch's exporter speaks by itself; runtimes since 2023 know them."""
EXTRA = ("onnx", "onnxscript", "onnxruntime")
INPUT, OUTPUT, BATCH = "image", "probabilities", "batch"


class Probabilities(nn.Module):
    """What is exported: the network with its task's activation, (B, C, *S) -> (B, K) or (B, K, *S)."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.network = predictor.network
        self.task = predictor.task

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Probabilities, not calibrated."""
        return self.task.predict(self.network, image)[1]


def to_onnx(
    predictor: Predictor, out: Path, samples: Sequence[Path] = (), dynamic_batch: bool = True
) -> dict[str, Any]:
    """Write an ONNX file and, beside it, its card, which is returned.

    Args:
        predictor: the model, on the CPU.
        out: the file, *.onnx, which does not exist yet.
        samples: images as they lie in their files, to hold both models against each other.
        dynamic_batch: take any number of images at once, else exactly one.

    Raises:
        ConfigError: the extra is not installed, or the network has an operation that ONNX does not.
        BundleError: the file answers otherwise than the model; nothing is left of it.
        InputError: a sample cannot be read, or is not what the model takes.
    """
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        raise ConfigError([f"ONNX needs {', '.join(missing)}: pip install 'medray[export]'"])
    import onnxruntime

    with staged(out, ".onnx") as part:
        module, example, shapes = _traceable(predictor, dynamic_batch)
        with torch.no_grad(), _translating(predictor, "ONNX"):
            written = torch.onnx.export(
                module,
                (example,),
                dynamic_shapes=shapes,
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
            assert written is not None  # noqa: S101  # with dynamo it never is
            shape = written.model.graph.inputs[0].shape
            if dynamic_batch and (shape is None or isinstance(shape[0], int)):
                raise ValueError("its batch is fixed")
        written.model.metadata_props.update(properties(predictor))
        written.save(part, external_data=False)
        session = onnxruntime.InferenceSession(part, providers=["CPUExecutionProvider"])

        def answer(images: Array) -> Array:
            return np.asarray(session.run([OUTPUT], {INPUT: images})[0])

        parity = compare(predictor, _batched(answer, dynamic_batch), samples)
        return _carded(predictor, part, parity, {"opset": OPSET, "dynamic_batch": dynamic_batch}, ("torch", *EXTRA))


def to_torch(
    predictor: Predictor, out: Path, samples: Sequence[Path] = (), dynamic_batch: bool = True
) -> dict[str, Any]:
    """Write a torch.export file, *.pt2, and, beside it, its card, which is returned; see `to_onnx`.

    It runs with torch alone: torch.export.load(FILE).module()(image). The golden windows are in it as example.

    Raises:
        ConfigError: the network cannot be traced.
        BundleError: the file answers otherwise than the model; nothing is left of it.
        InputError: a sample cannot be read, or is not what the model takes.
    """
    with staged(out, ".pt2") as part:
        module, example, shapes = _traceable(predictor, dynamic_batch)
        with torch.no_grad(), _translating(predictor, "torch.export"):
            graph = torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False)
        torch.export.save(graph, part, extra_files={"medray.json": json.dumps(properties(predictor))})
        loaded = torch.export.load(part).module()

        def answer(images: Array) -> Array:
            with torch.inference_mode():
                return np.asarray(loaded(torch.from_numpy(images)).numpy())

        parity = compare(predictor, _batched(answer, dynamic_batch), samples)
        return _carded(predictor, part, parity, {"dynamic_batch": dynamic_batch}, ("torch",))


def _traceable(predictor: Predictor, dynamic_batch: bool) -> tuple[nn.Module, torch.Tensor, dict[str, Any] | None]:
    """What is traced, its golden windows as example, and which axes of these may have another length."""
    require_network(predictor.bundle)
    window = torch.from_numpy(predictor.bundle.golden()[0])
    shapes = {INPUT: {0: torch.export.Dim(BATCH, min=1)}} if dynamic_batch else None
    return Probabilities(predictor), window if dynamic_batch else window[:1], shapes


def require_network(bundle: ModelBundle) -> None:
    """Refuse a bundle whose answer comes from a classical classifier on the network's features.

    Raises:
        ConfigError: naming the classifier.
    """
    if head := bundle.card.get("head"):
        raise ConfigError([f"a {head['kind']} answers for this model; export the network that it is on"])


def _batched(answer: Answer, dynamic: bool) -> Answer:
    """`answer` for any number of images, where it takes only one."""
    if dynamic:
        return answer
    return lambda images: np.concatenate([answer(image) for image in np.split(images, len(images))])


def properties(predictor: Predictor) -> dict[str, str]:
    """What a file says of itself, as plain text: the same words in ONNX's metadata and in a .pt2."""
    bundle = predictor.bundle
    return {
        "classes": json.dumps(bundle.classes),
        "outputs": "probabilities in the order of the classes, of regions in their order; not calibrated",
        "decision": json.dumps(bundle.card.get("decision")),
        "trust": json.dumps(bundle.card.get("trust")),
        "preprocess": bundle.experiment.preprocess.model_dump_json(),
        "bundle": bundle.digest,
        "intended_use": str(bundle.card["intended_use"]),
    }


@contextmanager
def staged(out: Path, suffix: str = "") -> Iterator[Path]:
    """A path that becomes `out`, with whatever lies beside it, when the block ends well; else nothing is left.

    Raises:
        ConfigError: `out` exists, or has another suffix.
    """
    if out.exists():
        raise ConfigError([f"--out: '{out}' exists; name one that does not"])
    if suffix and out.suffix != suffix:
        raise ConfigError([f"--out: '{out.name}' must end with {suffix}"])
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        yield Path(folder) / out.name
        for made in Path(folder).iterdir():
            made.rename(out.parent / made.name)


@contextmanager
def _translating(predictor: Predictor, language: str) -> Iterator[None]:
    """Turn what a converter refuses into a ConfigError; its warnings are about its own parts."""
    with warnings.catch_warnings(action="ignore"):
        try:
            yield
        except (RuntimeError, ValueError) as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            reason = str(cause).strip().splitlines()[0]
            name = predictor.bundle.experiment.network.name
            fact = f"network.name: {name} cannot be said in {language} ({reason})"
            raise ConfigError([f"{fact}; try --no-dynamic-batch, or another format"]) from error


def card_of(predictor: Predictor, parity: Mapping[str, Any], tools: Sequence[str]) -> dict[str, Any]:
    """What is known of an exported model."""
    bundle = predictor.bundle
    return {
        "bundle": bundle.digest,
        "classes": list(bundle.classes),
        "input": {"name": INPUT, "channels": bundle.io.in_channels, "size": list(bundle.io.size), "dtype": "float32"},
        "output": {"name": OUTPUT, "outputs": predictor.task.outputs, "calibrated": False},
        "decision": bundle.card.get("decision"),
        "trust": bundle.card.get("trust"),
        "preprocess": bundle.experiment.preprocess.model_dump(mode="json"),
        "parity": dict(parity),
        "tools": {name: version(name) for name in tools},
        "intended_use": bundle.card["intended_use"],
    }


def _carded(
    predictor: Predictor, file: Path, parity: Parity, details: Mapping[str, Any], tools: Sequence[str]
) -> dict[str, Any]:
    """Write the card of `file` beside it."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    card = {"file": file.name, "sha256": digest, **details, **card_of(predictor, parity.as_dict(), tools)}
    text = json.dumps(card, indent=2, allow_nan=False)
    file.with_name(f"{file.name}.export.json").write_text(text, encoding="utf-8")
    return card
