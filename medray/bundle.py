"""ModelBundle: the folder that *is* a model. It loads without MLflow and executes nothing.

experiment.json      the run that made it, preprocessing included
weights.safetensors  the best epoch's weights
card.json            classes, metrics, data fingerprint, code revision, input contract, intended use
golden.npz           a phantom window and the answer of the saved weights (float32, eval mode, CPU)
SHA256SUMS           over all of these, and over the extra files that a bundle may have (contract.npz, head.npz, ...)
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medray.config import ConfigError, Experiment, parse
from medray.tasks.task import Task
from medray.tasks.task import build as build_task
from medray.types import Array, NetworkIO

if TYPE_CHECKING:
    from torch import Tensor, nn

FILES = ("experiment.json", "weights.safetensors", "card.json", "golden.npz")
SUMS = "SHA256SUMS"
FORMAT = 2
GOLDEN_TOLERANCE = 1e-4
"""Largest difference of a probability in float32 on any machine."""
DEVICE_TOLERANCE = 2e-2
"""The same on another device or in another precision; goes into the card."""
GOLDEN_CASES = 2
GOLDEN_STEP = 4
INTENDED_USE = "Research use only. Not a medical device; not for diagnosis or treatment."


class BundleError(RuntimeError):
    """A folder is not a whole, unaltered bundle, or does not answer as it did when it was made."""


@dataclass(frozen=True, slots=True, eq=False)
class ModelBundle:
    """A model on disk, checked."""

    folder: Path
    experiment: Experiment
    card: Mapping[str, Any]
    extra_names: tuple[str, ...] = ()
    """Files beside FILES."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the scores."""
        return tuple(self.card["classes"])

    @property
    def io(self) -> NetworkIO:
        """What the network takes and gives."""
        entry = self.card["input"]
        return NetworkIO(entry["channels"], tuple(entry["size"]), self.card["outputs"], entry["dense"])

    @property
    def axes(self) -> int:
        """Axes of the images that the model takes; of a network that reads volumes slice by slice 3."""
        return int(self.card["input"]["axes"])

    @property
    def channels(self) -> int:
        """Channels of an image on the network's grid; a network of neighbouring slices sees more of them at once."""
        entry = self.card["input"]
        slices = 2 * self.experiment.window.neighbours + 1 if len(entry["size"]) < entry["axes"] else 1
        return int(entry["channels"]) // slices

    @property
    def digest(self) -> str:
        """sha256 over the bundle's sums: names exactly these bytes."""
        return hashlib.sha256((self.folder / SUMS).read_bytes()).hexdigest()

    def task(self) -> Task:
        """The task that decodes the network's output."""
        none = np.zeros((0, len(self.classes)), np.float32)
        return build_task(self.experiment.task, self.classes, self.card["multilabel"], none)

    def network(self) -> nn.Module:
        """The network with its weights, in eval mode, float32, on the CPU."""
        return _network(self.experiment, self.io, self.folder / "weights.safetensors")

    def extra(self, name: str) -> bytes | None:
        """The content of an extra file; None where there is none of that name."""
        return (self.folder / name).read_bytes() if name in self.extra_names else None

    def extras(self) -> dict[str, bytes]:
        """All extra files."""
        return {name: (self.folder / name).read_bytes() for name in self.extra_names}

    def golden(self) -> tuple[Array, Array]:
        """(window (B, C, *S) float32, `thinned` scores float32) of the saved weights."""
        with np.load(self.folder / "golden.npz", allow_pickle=False) as golden:
            return golden["window"], golden["scores"]

    def thinned(self, scores: Array) -> Array:
        """What golden.npz keeps of scores: all of (B, K), every GOLDEN_STEP-th voxel along each axis of (B, K, *S)."""
        return scores[(slice(None), slice(None), *[slice(None, None, GOLDEN_STEP)] * (scores.ndim - 2))]


Answer = Callable[[ModelBundle, Array], Array]
"""(bundle, window (B, C, *S) float32) -> scores (B, K), or (B, K, *S), float32."""


def save(
    folder: Path,
    experiment: Experiment,
    weights: Mapping[str, Tensor],
    card: Mapping[str, Any],
    extras: Mapping[str, bytes] | None = None,
    answer: Answer | None = None,
) -> ModelBundle:
    """Write a bundle; the folder appears only when it is whole.

    Args:
        folder: does not exist yet.
        experiment: the run, with what `weights` names left out: the bundle has its own.
        weights: the network's state dict.
        card: at least classes, multilabel, outputs and input (channels, size, axes, dense); see training/record.py.
        extras: more files, by name.
        answer: what answers the golden window; by default the network.
    """
    from safetensors.torch import save_file

    extras = extras or {}
    if wrong := [name for name in extras if name in (*FILES, SUMS) or not _is_plain(name)]:
        raise ValueError(f"extra files of a bundle have names of their own, without folders: {wrong}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        network = {"weights": None, "freeze": False}
        experiment = experiment.model_copy(update={"network": experiment.network.model_copy(update=network)})
        (temporary / "experiment.json").write_text(experiment.model_dump_json(indent=2), encoding="utf-8")
        save_file({name: tensor.contiguous().clone() for name, tensor in weights.items()}, temporary / FILES[1])
        whole_card = {"format": FORMAT, "intended_use": INTENDED_USE, "tolerance": DEVICE_TOLERANCE, **card}
        (temporary / "card.json").write_text(json.dumps(whole_card, indent=2, allow_nan=False), encoding="utf-8")
        for name, content in extras.items():
            (temporary / name).write_bytes(content)
        _write_golden(ModelBundle(temporary, experiment, whole_card, tuple(extras)), answer)
        sums = "".join(f"{_sha256(temporary / name)}  {name}\n" for name in (*FILES, *extras))
        (temporary / SUMS).write_text(sums, encoding="utf-8")
        for name in (*FILES, *extras, SUMS):
            _sync(temporary / name)
        temporary.chmod(0o755)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return load(folder)


def load(folder: Path) -> ModelBundle:
    """The bundle in `folder`, its files checked against their sums.

    Raises:
        BundleError: naming the file that is missing or altered.
    """
    if not (folder / SUMS).is_file():
        raise BundleError(f"{folder} is not a model bundle: it has no {SUMS}")
    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    extra_names = tuple(name for name in sums if name not in FILES)
    if strange := [name for name in extra_names if name == SUMS or not _is_plain(name)]:
        raise BundleError(f"{SUMS} in {folder} names what is no file of a bundle: {strange[0]!r}")
    for name in (*FILES, *extra_names):
        if not (folder / name).is_file():
            raise BundleError(f"{folder} is not a whole bundle: {name} is missing")
        if sums.get(name) != _sha256(folder / name):
            raise BundleError(f"{name} in {folder} was altered: its sha256 is not the one in {SUMS}")
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    if card["format"] != FORMAT:
        raise BundleError(f"{folder} has format {card['format']}; this medray reads format {FORMAT}")
    try:
        experiment = parse(json.loads((folder / "experiment.json").read_text(encoding="utf-8")))
    except ConfigError as error:
        raise BundleError(f"experiment.json in {folder} does not fit this medray: {error}") from None
    return ModelBundle(folder, experiment, card, extra_names)


def golden_window(io: NetworkIO, seed: int) -> Array:
    """(B, C, *S) float32 in [-1, 1]: smooth blobs, made of no patient's data."""
    draw = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, edge) for edge in io.size], indexing="ij")
    window = np.empty((GOLDEN_CASES, io.in_channels, *io.size), np.float32)
    for case, channel in np.ndindex(window.shape[:2]):
        centre, width = draw.uniform(-0.5, 0.5, len(io.size)), draw.uniform(0.2, 0.8)
        distance = sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True))
        window[case, channel] = 2 * np.exp(-distance / width**2) - 1 + draw.normal(0, 0.05, io.size)
    return window


def answer(bundle: ModelBundle, window: Array) -> Array:
    """(B, K), or (B, K, *S), scores of the saved weights for a window (B, C, *S), in float32 on the CPU."""
    import torch

    with torch.inference_mode():
        return np.asarray(bundle.task().predict(bundle.network(), torch.from_numpy(window))[1].numpy())


def _write_golden(bundle: ModelBundle, how: Answer | None) -> None:
    window = golden_window(bundle.io, bundle.experiment.seed)
    scores = (how or answer)(bundle, window)
    np.savez_compressed(bundle.folder / "golden.npz", window=window, scores=bundle.thinned(scores))


def _is_plain(name: str) -> bool:
    """Whether `name` is that of a file in the folder itself."""
    return name not in ("", ".", "..") and "\\" not in name and name == Path(name).name


def _network(experiment: Experiment, io: NetworkIO, weights: Path) -> nn.Module:
    from safetensors.torch import load_file

    from medray.networks.build import build as build_network

    network = build_network(experiment.network, io, experiment.seed, known=True).network
    network.load_state_dict(load_file(weights), strict=True)
    return network.eval()


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
