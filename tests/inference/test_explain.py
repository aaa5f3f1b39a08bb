"""Explanations: they find what a network looks at, keep their axioms, and change when the network forgets."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import nibabel
import numpy as np
import pytest
import torch
from conftest import tiny
from test_features import bundle_of
from torch import Tensor, nn
from torch.nn import functional

from medray.config import ConfigError
from medray.imaging.geometry import fit, to_ras
from medray.inference.attribution import LAYERED, METHODS, Probe, grad_cam, grad_cam_pp, integrate
from medray.inference.explain import explain, probe_of, write
from medray.inference.predictor import Predictor
from medray.inference.sanity import randomisation_check, spearman, ssim
from medray.networks.build import build
from medray.networks.layers import Features, bottleneck, feature_layer
from medray.sections.data import PreprocessSection
from medray.sections.inference import WindowSection
from medray.types import Array, Case, NetworkIO


class Quadrant(nn.Module):
    """Looks at the brightness of the first half along each axis, and at nothing else; 2D and 3D."""

    def __init__(self, dims: int, outputs: int, dense: bool = False) -> None:
        super().__init__()
        self.dense = dense
        conv = nn.Conv3d if dims == 3 else nn.Conv2d
        self.features = conv(1, 2, 1, bias=False)
        self.head = nn.Linear(2, outputs, bias=False)
        with torch.no_grad():
            self.features.weight.copy_(torch.tensor([1.0, -1.0]).view_as(self.features.weight))
            self.head.weight.copy_(torch.tensor([[-1.0, 1.0], [2.0, -1.0], [0.0, 0.0]])[:outputs])

    def forward(self, image: Tensor) -> Tensor:
        here = torch.zeros_like(image)
        here[:, :, *[slice(0, edge // 2) for edge in image.shape[2:]]] = 1
        seen = self.features(image * here).relu()
        if self.dense:
            return torch.einsum("bf...,kf->bk...", seen, self.head.weight)
        logits: Tensor = self.head(seen.flatten(2).sum(2) ** 1.5)
        return logits


class Multiclass:
    """What explain asks of a task."""

    dense = False

    def predict(self, network: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
        output = network(image)
        return output, output.softmax(1)

    def masks(self, scores: Tensor) -> Tensor:
        return functional.one_hot(scores.argmax(1), scores.shape[1]).movedim(-1, 1).bool()


def predictor_of(network: nn.Module, io: NetworkIO, classes: tuple[str, ...]) -> Predictor:
    """As much of a predictor as an explanation needs, around any network."""
    experiment = SimpleNamespace(
        preprocess=PreprocessSection(), task=SimpleNamespace(name="none"), window=WindowSection()
    )
    bundle = SimpleNamespace(io=io, classes=classes, experiment=experiment, card={})
    made = SimpleNamespace(
        bundle=bundle,
        network=network.eval(),
        device=torch.device("cpu"),
        task=Multiclass(),
        window=experiment.window,
        features=features_of(network.eval(), io),
        read=lambda case: case,
        prepare=lambda case: (case, case.image),
    )
    return cast(Predictor, made)


def features_of(network: nn.Module, io: NetworkIO) -> Features | None:
    """As Predictor finds them."""
    if not io.dense:
        return feature_layer(network, io)
    name = bottleneck(network, io)
    return None if name is None else Features(name, "")


def bright(size: tuple[int, ...]) -> Case:
    """Noise everywhere, as bright in each corner."""
    draw = np.random.default_rng(0)
    return Case("c", draw.uniform(0.5, 1.0, (1, *size)).astype(np.float32), np.eye(4))


@pytest.mark.parametrize("size", [(16, 24), (8, 12, 16)])
@pytest.mark.parametrize("method", METHODS)
def test_heat_is_where_the_network_looks(method: str, size: tuple[int, ...]) -> None:
    io = NetworkIO(1, size, 3)
    predictor = predictor_of(Quadrant(len(size), 3), io, ("dark", "bright", "none"))
    found = explain(predictor, bright(size), method)
    assert found.target == "bright"
    assert found.heat.shape == size
    assert found.heat.dtype == np.float32
    assert found.heat.min() == 0
    assert found.heat.max() == 1
    inside = np.zeros(size, bool)
    inside[tuple(slice(0, edge // 2) for edge in size)] = True
    # A box of grey over the border hides what counts on one side of it alone.
    assert found.heat[inside].sum() > (0.6 if method == "occlusion" else 0.95) * found.heat.sum()
    assert found.heat[inside].mean() > 4 * found.heat[~inside].mean()


def test_a_class_by_name_or_number_and_one_that_nothing_speaks_for() -> None:
    predictor = predictor_of(Quadrant(2, 3), NetworkIO(1, (16, 16), 3), ("dark", "bright", "none"))
    case = bright((16, 16))
    np.testing.assert_array_equal(
        explain(predictor, case, target="bright").heat, explain(predictor, case, target=1).heat
    )
    assert not explain(predictor, case, target="dark").heat.any(), "brightness only speaks against it"
    assert not explain(predictor, case, target="none").heat.any()


@pytest.mark.parametrize("method", LAYERED)
@pytest.mark.parametrize("size", [(32, 32), (44, 32)])
def test_a_dense_network_is_explained_by_the_voxels_of_a_class(method: str, size: tuple[int, ...]) -> None:
    """In one pass, and by windows over an image that is larger than one."""
    predictor = predictor_of(
        Quadrant(2, 3, dense=True), NetworkIO(1, (32, 32), 3, dense=True), ("back", "organ", "other")
    )
    object.__setattr__(predictor.task, "outputs", 3)
    found = explain(predictor, bright(size), method)
    assert found.target == "organ"
    assert found.heat.shape == size
    assert found.heat[:16, :16].mean() > 5 * found.heat[size[0] - 8 :, 24:].mean()
    assert not explain(predictor, bright(size), method, "other").heat.any(), "found nowhere"
    assert randomisation_check(predictor, [bright(size)], method).layers == (1, 2)
    with pytest.raises(ConfigError, match=r"take gradcam or gradcam\+\+"):
        explain(predictor, bright(size), "occlusion")


@pytest.mark.parametrize(("family", "size"), [("lenet", (24, 24)), ("plain", (12, 12, 12)), ("vit", (16, 16))])
def test_integrated_gradients_are_complete(family: str, size: tuple[int, ...]) -> None:
    probe, image = probe_and_image(family, size)
    parts, rest = integrate(probe, image)
    difference = float(probe(image).detach() - probe(torch.full_like(image, image.min())).detach())
    assert parts.shape == image.shape
    assert float(parts.sum()) == pytest.approx(difference, rel=0.02)
    assert rest <= 0.02
    assert all(parameter.grad is None for parameter in probe.network.parameters())


def probe_and_image(family: str, size: tuple[int, ...]) -> tuple[Probe, Tensor]:
    settings: dict[str, Any] = {"resnet": {"depth": 10, "stem": "small"}, "vit": {"patch": 8}}.get(family, {})
    io = NetworkIO(1, size, 3)
    draw = torch.Generator().manual_seed(1)
    network = build(tiny(Path("x"), network={"name": family, **settings}).network, io, seed=0).network.eval()
    with torch.no_grad():
        last = [part for part in network.modules() if isinstance(part, nn.Linear)][-1]
        last.weight.copy_(torch.randn(last.weight.shape, generator=draw))
    return Probe(network, lambda network, images: network(images)[:, 1], feature_layer(network, io)), torch.randn(
        1, 1, *size, generator=draw
    )


@pytest.mark.parametrize("size", [(32, 32), (16, 16, 16)])
def test_grad_cam_is_monais(size: tuple[int, ...]) -> None:
    """And Grad-CAM++, since before a global mean the gradient is the same everywhere."""
    from monai.visualize.class_activation_maps import GradCAM, GradCAMpp

    probe, image = probe_and_image("resnet", size)
    assert probe.features is not None
    for ours, theirs in ((grad_cam, GradCAM), (grad_cam_pp, GradCAMpp)):
        found = ours(probe, image)
        expected = theirs(probe.network, probe.features.layer, postprocessing=lambda heat: heat)(image, class_idx=1)[
            0, 0
        ]
        scaled = [heat.detach() / heat.max().detach() for heat in (found, expected)]
        torch.testing.assert_close(*scaled, atol=1e-4, rtol=1e-4)


def test_a_transformer_is_explained_by_its_patches() -> None:
    probe, image = probe_and_image("vit", (32, 48))
    heat = grad_cam(probe, image)
    assert heat.shape == (32, 48)
    assert heat.max() > 0


def test_what_does_not_go_names_what_does() -> None:
    probe, image = probe_and_image("resnet", (32, 32))
    one_voxel = Probe(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), lambda n, x: n(x)[:, 0], Features("0", ""))
    for broken in (Probe(probe.network, probe.score, None), one_voxel):
        with pytest.raises(ConfigError, match="occlusion, integrated_gradients, smoothgrad"):
            grad_cam(broken, image)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Predictor:
    """A network that has learnt stripes along rows from stripes along columns."""
    folder = tmp_path_factory.mktemp("trained")
    made = Predictor(bundle_of(folder / "untrained", image_folder).folder)
    files = sorted(image_folder.rglob("*.png"))
    images = torch.from_numpy(np.stack([made.prepare(file)[1] for file in files]))
    target = torch.tensor([float(file.parent.name == "class1") for file in files])[:, None]
    optimizer = torch.optim.Adam(made.network.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(made.network(images), target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return Predictor(bundle_of(folder / "trained", image_folder, made.network).folder)


def test_of_two_classes_what_speaks_for_one_speaks_against_the_other(trained: Predictor, image_folder: Path) -> None:
    file = next((image_folder / "class1").glob("*.png"))
    assert explain(trained, file).target == "class1"
    image = trained.prepare(file)[1][None]
    first, second = (probe_of(trained, target)(torch.from_numpy(image)).item() for target in (0, 1))
    assert first == -second
    assert second > 0
    assert 1 / (1 + np.exp(-second)) == pytest.approx(trained.scores(image)[0, 1], abs=1e-6)


def edges(_probe: Probe, image: Tensor) -> Tensor:
    """Draws the image again, whatever the network."""
    grey = image[0, 0]
    return sum((torch.diff(grey, dim=axis, append=grey.narrow(axis, 0, 1)).abs() for axis in (0, 1)), grey * 0)


@pytest.mark.parametrize("method", ["gradcam", "smoothgrad"])
def test_explanations_change_when_the_network_forgets(trained: Predictor, image_folder: Path, method: str) -> None:
    files = sorted(image_folder.rglob("*.png"))[::8]
    report = randomisation_check(trained, files, method)
    assert report.passed
    assert report.rank_correlation[-1] < 0.5
    assert report.ssim[-1] < 0.5
    assert report.layers[0] == 1
    assert "depends on what the network learnt" in str(report)
    assert randomisation_check(trained, files, method) == report


@pytest.mark.parametrize("method", [edges, lambda _, image: torch.ones_like(image[0, 0])])
def test_what_only_draws_the_image_fails_the_check(trained: Predictor, image_folder: Path, method: Any) -> None:
    before = {name: value.clone() for name, value in trained.network.state_dict().items()}
    report = randomisation_check(trained, sorted(image_folder.rglob("*.png"))[:2], method)
    assert not report.passed
    assert report.rank_correlation == (1.0,) * len(report.layers)
    assert "HARDLY" in str(report)
    after = trained.network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items()), "the model itself forgets nothing"


def test_similarities_are_those_of_the_libraries() -> None:
    from scipy.stats import spearmanr
    from torchmetrics.functional.image import structural_similarity_index_measure

    draw = np.random.default_rng(0)
    a = np.round(draw.random((40, 40)), 1)
    b = np.round(a + draw.normal(0, 0.3, a.shape), 1).clip(0)
    assert spearman(a, b) == pytest.approx(spearmanr(a.ravel(), b.ravel()).statistic)
    assert spearman(a, np.ones_like(a)) == 0
    pair = [torch.from_numpy(part / part.max())[None, None] for part in (a, b)]
    expected = structural_similarity_index_measure(*pair, gaussian_kernel=False, kernel_size=7, data_range=1.0)
    assert ssim(a, b) == pytest.approx(float(expected), abs=0.02), "they treat the border otherwise"
    assert ssim(a, a) == pytest.approx(1)


def test_files_are_on_the_patients_grid(tmp_path: Path) -> None:
    """A volume in other axes and spacing than the network's: the heat lies where the voxels lie."""
    affine = np.diag([-2.0, 1.0, 3.0, 1.0])
    raw = Case("c", np.random.default_rng(0).uniform(0.5, 1, (1, 8, 16, 6)).astype(np.float32), affine, "mm")
    predictor = predictor_of(Quadrant(3, 3), NetworkIO(1, (16, 16, 16), 3), ("dark", "bright", "none"))

    def prepare(case: Case) -> tuple[Case, Array]:
        moved = fit(to_ras(case), (16, 16, 16), "stretch")
        return moved, moved.image

    object.__setattr__(predictor, "prepare", prepare)
    found = explain(predictor, raw)
    picture, volume = write(found, tmp_path / "out", "case")
    assert picture.read_bytes().startswith(b"\x89PNG")
    again = nibabel.load(volume)
    np.testing.assert_allclose(again.affine, affine)
    heat = np.asarray(again.dataobj)
    assert heat.shape == (8, 16, 6)
    # The first axis is flipped on the way to RAS+: the network's first half is the patient's second.
    assert heat[4:, :8, :3].mean() > 10 * heat[:4].mean()


def test_a_picture_of_a_real_bundle(tmp_path: Path, image_folder: Path, trained: Predictor) -> None:
    found = explain(trained, next(image_folder.rglob("*.png")), "occlusion", "class0")
    (picture,) = write(found, tmp_path, "case")
    assert picture == tmp_path / "case.png"
    assert picture.is_file()
