"""Classical classifiers as the head of a network: plain arrays that answer in numpy, without scikit-learn or pickle.

Softmax regression (Cox 1958), SVM (Cortes 1995, 10.1007/BF00994018) with sigmoids (Platt 1999), decision tree
(Breiman 1984), random forest (Breiman 2001, 10.1023/A:1010933404324), k nearest neighbours (Cover 1967,
10.1109/TIT.1967.1053964). `fitting.py` makes them with scikit-learn, whose probabilities they give to 1e-6. In a bundle
a head is `head.json` and `head.npz`.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import numpy as np

from medray.bundle import BundleError
from medray.types import Array

Kind = Literal["softmax", "svm", "tree", "forest", "knn"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Arrays = Mapping[str, Array]
HEAD_FILES = ("head.json", "head.npz")
FORMAT = 1
PRIVACY = (
    "holds the features of training cases, which may tell who was among them and something of their images: "
    "hand it on only as the training data themselves"
)
"""What is said of a head that `keeps_cases`."""
DISTANCES_AT_ONCE = 1 << 22

# Letters of shapes: F features, K classes, P pairs of classes, R sigmoids (1 of two classes, else K), M kept cases,
# N nodes of all trees, T trees. Capitals are lengths; the type is float64, or int32 where the name is in INDICES.
SCALED = {"mean": "F", "scale": "F"}
TREES = {"left": "N", "right": "N", "feature": "N", "threshold": "N", "value": "NK", "roots": "T"}
SIGMOIDS = {"intercept": "P", "slope": "R", "offset": "R"}
SHAPES: Mapping[str, Mapping[str, str]] = {
    "softmax": {**SCALED, "coef": "FK", "intercept": "K"},
    "svm linear": {**SCALED, **SIGMOIDS, "coef": "FP"},
    "svm rbf": {**SCALED, **SIGMOIDS, "vectors": "MF", "pairs": "MP", "gamma": ""},
    "tree": TREES,
    "forest": TREES,
    "knn": {**SCALED, "reference": "MF", "targets": "MK", "neighbours": "", "by_distance": ""},
}
INDICES = {"left", "right", "feature", "roots", "neighbours", "by_distance"}


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A fitted classifier of features."""

    kind: Kind
    features: int
    classes: int
    parts: tuple[Arrays, ...]
    """One for classes that exclude each other; for multi-label one of two classes, absent and present, per label."""
    multilabel: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What it was fitted with, for people."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: {self.kind!r} is none of {', '.join(KINDS)}")
        if len(self.parts) != (self.classes if self.multilabel else 1):
            raise ValueError(f"parts: {len(self.parts)} for {self.classes} classes, multilabel {self.multilabel}")
        for part in self.parts:
            _check(self.kind, part, self.features, 2 if self.multilabel else self.classes)

    @property
    def keeps_cases(self) -> bool:
        """Whether features of training cases are in it, see PRIVACY."""
        return any("reference" in part or "vectors" in part for part in self.parts)


def scores(head: Head, features: Array) -> Array:
    """(N, K) float64 probabilities of features (N, F).

    Raises:
        ValueError: another number of features.
    """
    if features.ndim != 2 or features.shape[1] != head.features:
        raise ValueError(f"features have shape {features.shape}, the head takes (N, {head.features})")
    answer = ANSWERS[head.kind]
    if head.multilabel:
        return np.stack([answer(part, features)[:, 1] for part in head.parts], 1)
    return answer(head.parts[0], features)


def head_to_bytes(head: Head) -> dict[str, bytes]:
    """The head as the files HEAD_FILES, the same bytes for the same head."""
    text = {
        "format": FORMAT,
        "kind": head.kind,
        "features": head.features,
        "classes": head.classes,
        "multilabel": head.multilabel,
        "settings": dict(head.settings),
    }
    arrays = io.BytesIO()
    named = {f"{index}.{name}": array for index, part in enumerate(head.parts) for name, array in part.items()}
    np.savez_compressed(arrays, **cast(Any, named))
    return dict(zip(HEAD_FILES, (json.dumps(text, indent=2).encode(), arrays.getvalue()), strict=True))


def head_of(extras: Mapping[str, bytes]) -> Head | None:
    """The head among the extra files of a bundle; None where the network itself answers.

    Raises:
        BundleError: as `head_from_bytes`.
    """
    return head_from_bytes(extras) if HEAD_FILES[0] in extras else None


def head_from_bytes(files: Mapping[str, bytes]) -> Head:
    """The head in the files of a bundle.

    Raises:
        BundleError: they do not hold a head that can answer.
    """
    try:
        text = json.loads(files[HEAD_FILES[0]])
        if text["format"] != FORMAT:
            raise ValueError(f"format {text['format']}, this medray reads {FORMAT}")
        parts: list[dict[str, Array]] = [{} for _ in range(text["classes"] if text["multilabel"] else 1)]
        with np.load(io.BytesIO(files[HEAD_FILES[1]]), allow_pickle=False) as arrays:
            for name in arrays.files:
                index, _, key = name.partition(".")
                parts[int(index)][key] = arrays[name]
        return Head(text["kind"], text["features"], text["classes"], tuple(parts), text["multilabel"], text["settings"])
    except (KeyError, IndexError, TypeError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise BundleError(f"the classifier in {' and '.join(HEAD_FILES)} cannot be used: {error}") from None


def _check(kind: Kind, part: Arrays, features: int, classes: int) -> None:
    """Raise ValueError where arrays are missing, do not fit together, or would lead out of each other."""
    named = kind if kind != "svm" else f"svm {'rbf' if 'vectors' in part else 'linear'}"
    shapes = SHAPES[named]
    if set(part) != set(shapes):
        raise ValueError(f"a head '{named}' holds {', '.join(sorted(shapes))}, got {', '.join(sorted(part))}")
    lengths = {"F": features, "K": classes, "P": classes * (classes - 1) // 2, "R": 1 if classes == 2 else classes}
    for name, letters in shapes.items():
        array, dtype = part[name], np.dtype(np.int32 if name in INDICES else np.float64)
        if array.dtype != dtype or array.ndim != len(letters) or not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite {dtype} with {len(letters)} axes, is {array.dtype} {array.shape}")
        for letter, length in zip(letters, array.shape, strict=True):
            if lengths.setdefault(letter, length) != length:
                raise ValueError(f"{name} has shape {array.shape}, expected {lengths[letter]} for {letter}")
    if "roots" in part:
        _check_trees(part, features, lengths["N"])
    if "neighbours" in part and not 1 <= part["neighbours"] <= lengths["M"]:
        raise ValueError(f"{part['neighbours']} neighbours of {lengths['M']} kept cases")


def _check_trees(part: Arrays, features: int, nodes: int) -> None:
    """Children come after their parents, so that every walk ends."""
    inner = part["left"] >= 0
    place = np.arange(nodes)
    for children in (part["left"], part["right"]):
        if not ((children[inner] > place[inner]) & (children[inner] < nodes)).all():
            raise ValueError("a node of a tree has no child behind it")
    if not ((part["feature"][inner] >= 0) & (part["feature"][inner] < features)).all():
        raise ValueError("a node of a tree asks for a feature that is not there")
    roots = part["roots"]
    if not (roots.size and (roots >= 0).all() and (roots < nodes).all()):
        raise ValueError("a tree begins outside of the nodes")


def _scaled(part: Arrays, features: Array) -> Array:
    """Features with mean 0 and deviation 1 over the training cases."""
    return (features.astype(np.float64) - part["mean"]) / part["scale"]


def _softmax(part: Arrays, features: Array) -> Array:
    logits = _scaled(part, features) @ part["coef"] + part["intercept"]
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return cast(Array, odds / odds.sum(1, keepdims=True))


def _svm(part: Arrays, features: Array) -> Array:
    """One decision for each pair of classes; votes of pairs, and how sure they are; a sigmoid for each class."""
    x = _scaled(part, features)
    if "vectors" in part:
        pairs = np.concatenate(
            [np.exp(-part["gamma"] * square) @ part["pairs"] for square in _square_distances(x, part["vectors"])]
        )
    else:
        pairs = x @ part["coef"]
    pairs = pairs + part["intercept"]
    decisions = pairs if len(part["slope"]) == 1 else _votes(pairs, len(part["slope"]))
    rising = _sigmoid(part["slope"] * decisions + part["offset"])
    if rising.shape[1] == 1:
        return np.concatenate([1 - rising, rising], 1)
    total = rising.sum(1, keepdims=True)
    even = np.full_like(rising, 1 / rising.shape[1])
    return np.where(total > 0, rising / np.where(total > 0, total, 1), even)


def _votes(pairs: Array, classes: int) -> Array:
    """(N, K) votes for each class, ties settled by the sum of decisions, as scikit-learn does it.

    `pairs` (N, P) is above 0 where the first class of (0, 1), (0, 2), ..., (1, 2), ... wins.
    """
    first, second = np.triu_indices(classes, 1)
    sign = np.zeros((len(first), classes))
    sign[np.arange(len(first)), first], sign[np.arange(len(first)), second] = 1, -1
    for_first = pairs >= 0
    won = for_first.astype(np.float64) @ (sign > 0) + (~for_first).astype(np.float64) @ (sign < 0)
    sure = pairs @ sign
    return cast(Array, won + sure / (3 * (np.abs(sure) + 1)))


def _sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(x))
    return cast(Array, np.where(x >= 0, 1, small) / (1 + small))


def _trees(part: Arrays, features: Array) -> Array:
    """Mean over trees of the shares of classes in the leaf that a case falls into."""
    x = features.astype(np.float32)
    case = np.arange(len(x))[:, None]
    node = np.broadcast_to(part["roots"], (len(x), len(part["roots"])))
    while (inner := part["left"][node] >= 0).any():
        low = x[case, np.where(inner, part["feature"][node], 0)] <= part["threshold"][node]
        node = np.where(inner, np.where(low, part["left"][node], part["right"][node]), node)
    return cast(Array, sum(part["value"][column] for column in node.T) / node.shape[1])


def _knn(part: Arrays, features: Array) -> Array:
    """Shares of classes among the nearest kept cases, weighted by 1 / distance where that was chosen."""
    wanted = int(part["neighbours"])
    answers = []
    for square in _square_distances(_scaled(part, features), part["reference"]):
        nearest = np.argpartition(square, wanted - 1, axis=1)[:, :wanted]
        weight = np.ones(nearest.shape)
        if part["by_distance"]:
            distance = np.sqrt(np.take_along_axis(square, nearest, 1))
            same = distance == 0
            with np.errstate(divide="ignore"):
                weight = np.where(same.any(1, keepdims=True), same, 1 / distance)
        share = np.einsum("nm,nmk->nk", weight, part["targets"][nearest])
        answers.append(share / share.sum(1, keepdims=True))
    return np.concatenate(answers)


def _square_distances(x: Array, kept: Array) -> Any:
    """(n, M) squared distances of some rows of `x` (N, F) after the other to kept cases (M, F)."""
    own = (kept**2).sum(1)
    rows = max(1, DISTANCES_AT_ONCE // len(kept))
    for start in range(0, len(x), rows):
        part = x[start : start + rows]
        yield np.maximum((part**2).sum(1)[:, None] - 2 * part @ kept.T + own, 0)


ANSWERS: Mapping[Kind, Callable[[Arrays, Array], Array]] = {
    "softmax": _softmax,
    "svm": _svm,
    "tree": _trees,
    "forest": _trees,
    "knn": _knn,
}
