import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from medray.pipeline import affine, draws
from medray.pipeline.augment import CLASSES_AT_ONCE, augment, augment_pair, mixup_weights
from medray.pipeline.draws import Key, Stream, keys, pick, uniform
from medray.sections.augment import AugmentSection, Mixup
from medray.types import IGNORED

OPTIONS = {
    "flip": {"axes": (0, 1)},
    "rotate": {"degrees": 30},
    "scale": {"fraction": 0.2},
    "shear": {"degrees": 10},
    "shift": {"fraction": 0.2},
    "crop": {"fraction": 0.3},
    "gamma": {"strength": 0.5},
    "brightness": {"shift": 0.3},
    "contrast": {"fraction": 0.4},
    "noise": {"std": 0.2},
    "blur": {"sigma_px": 1.5},
    "cutout": {"fraction": 0.4},
}
EXTREME = {
    "flip": {"axes": (0, 1)},
    "rotate": {"degrees": 1e4},
    "scale": {"fraction": 0.99},
    "shear": {"degrees": 79},
    "shift": {"fraction": 1},
    "crop": {"fraction": 0.99},
    "gamma": {"strength": 20},
    "brightness": {"shift": 100},
    "contrast": {"fraction": 0.99},
    "noise": {"std": 10},
    "blur": {"sigma_px": 10},
    "cutout": {"fraction": 1},
}
GOLDEN = [0.22137264995725925, 0.85154066342976]
SIZES = [(12, 16), (6, 8, 10)]


def section(p: float, **options: dict[str, object]) -> AugmentSection:
    return AugmentSection.model_validate({name: {"p": p, **given} for name, given in options.items()})


def batch(n: int, size: tuple[int, ...], channels: int = 2) -> torch.Tensor:
    return torch.rand((n, channels, *size), generator=torch.Generator().manual_seed(0)) * 2 - 1


def key(n: int = 2000, seed: int = 0, epoch: int = 0) -> Key:
    return Key(seed, epoch, np.arange(n))


def test_draws_are_the_published_generators() -> None:
    # The first outputs of SplitMix64 from the state 1234567, as in the reference implementation of Vigna.
    state = np.full(3, 1234567, np.uint64)
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert draws._mix(state, np.arange(3, dtype=np.uint64)).tolist() == published


def test_draws_never_change() -> None:
    np.testing.assert_allclose(uniform(Key(1, 2, np.asarray([3])), Stream.FLIP, 2)[0], GOLDEN, rtol=0, atol=0)


def test_draws_are_uniform_and_independent() -> None:
    u = uniform(key(20_000), Stream.ROTATE, 3)
    assert u.min() >= 0
    assert u.max() < 1
    for column in u.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    others = [uniform(key(20_000, 1), Stream.ROTATE, 1), uniform(key(20_000, 0, 1), Stream.ROTATE, 1)]
    others.append(uniform(key(20_000), Stream.SCALE, 1))
    correlation = np.corrcoef(np.column_stack([u, u[:, :1] * 0 + np.roll(u[:, :1], 1, 0), *others]).T)
    assert np.abs(correlation - np.eye(7)).max() < 0.03
    assert len(np.unique(keys(key(20_000), Stream.NOISE_FIELD))) == 20_000


@given(st.integers(-(2**40), 2**62), st.integers(0, 10**6), st.lists(st.integers(0, 2**40), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_draws_depend_on_seed_epoch_and_case_only(seed: int, epoch: int, cases: list[int]) -> None:
    together = uniform(Key(seed, epoch, np.asarray(cases)), Stream.CROP, 4)
    for row, case in zip(together, cases, strict=True):
        np.testing.assert_array_equal(uniform(Key(seed, epoch, np.asarray([case])), Stream.CROP, 4)[0], row)


def test_pick_falls_with_its_probability() -> None:
    rows, u = pick(key(20_000), Stream.BLUR, 0.3, 2)
    assert u.shape == (len(rows), 2)
    assert abs(len(rows) / 20_000 - 0.3) < 0.015
    assert len(pick(key(50), Stream.BLUR, 1, 1)[0]) == 50


@pytest.mark.parametrize("size", SIZES)
def test_off_is_the_input_itself(size: tuple[int, ...]) -> None:
    image = batch(3, size)
    assert augment(image, AugmentSection(), 0, 0, np.arange(3)) is image
    no_strength = {"rotate": {"degrees": 0}, "noise": {"std": 0}, "gamma": {"strength": 0}, "blur": {"sigma_px": 0}}
    no_strength |= {"scale": {"fraction": 0}, "crop": {"fraction": 0}, "shift": {"fraction": 0}}
    no_strength |= {"shear": {"degrees": 0}, "cutout": {"fraction": 0}, "contrast": {"fraction": 0}}
    assert augment(image, section(1, **no_strength, brightness={"shift": 0}), 0, 0, np.arange(3)) is image
    empty = image[:0]
    assert augment(empty, section(1, **OPTIONS), 0, 0, np.arange(0)) is empty


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_changes_what_it_was_drawn_for_and_nothing_else(name: str, size: tuple[int, ...]) -> None:
    image = batch(24, size)
    before = image.clone()
    out = augment(image, section(0.5, **{name: OPTIONS[name]}), 3, 1, np.arange(24))
    assert torch.equal(image, before)
    assert out.shape == image.shape
    same = [torch.equal(a, b) for a, b in zip(out, image, strict=True)]
    assert 2 <= sum(same) <= 22 if name != "flip" else 1 <= sum(same) <= 15
    assert not torch.equal(out, augment(image, section(0.5, **{name: OPTIONS[name]}), 3, 2, np.arange(24)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("p", [0.5, 1.0])
def test_a_case_does_not_see_its_batch(size: tuple[int, ...], p: float) -> None:
    image, cfg = batch(10, size), section(p, **OPTIONS)
    together = augment(image, cfg, 5, 2, np.arange(100, 110))
    for case in range(10):
        alone = augment(image[case : case + 1], cfg, 5, 2, np.asarray([100 + case]))
        torch.testing.assert_close(alone[0], together[case], rtol=0, atol=2e-6)
    order = torch.tensor([7, 2, 9])
    torch.testing.assert_close(
        augment(image[order], cfg, 5, 2, 100 + order.numpy()), together[order], rtol=0, atol=2e-6
    )


@pytest.mark.parametrize("size", SIZES)
def test_motion_and_noise_are_the_same_bits_in_any_batch(size: tuple[int, ...]) -> None:
    names = ("flip", "rotate", "scale", "shear", "shift", "crop", "noise")
    image, cfg = batch(9, size), section(0.6, **{name: OPTIONS[name] for name in names})
    together = augment(image, cfg, 5, 2, np.arange(9))
    assert torch.equal(augment(image[7:8], cfg, 5, 2, np.asarray([7]))[0], together[7])


@pytest.mark.parametrize("size", SIZES)
def test_extremes_are_finite(size: tuple[int, ...]) -> None:
    image = batch(16, size)
    for name, given_ in EXTREME.items():
        assert torch.isfinite(augment(image, section(1, **{name: given_}), 0, 0, np.arange(16))).all(), name
    assert torch.isfinite(augment(image, section(1, **EXTREME), 0, 0, np.arange(16))).all()


@pytest.mark.parametrize("size", SIZES)
def test_a_constant_image_stays_constant(size: tuple[int, ...]) -> None:
    quiet = {name: given_ for name, given_ in OPTIONS.items() if name not in ("noise", "brightness")}
    image = torch.full((8, 1, *size), 0.3)
    torch.testing.assert_close(augment(image, section(1, **quiet), 0, 0, np.arange(8)), image, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_kept(dtype: torch.dtype) -> None:
    quiet = section(0.5, **{name: given_ for name, given_ in OPTIONS.items() if name != "noise"})
    image = batch(6, (12, 16)).to(dtype)
    out = augment(image, quiet, 0, 0, np.arange(6))
    assert out.dtype == dtype
    exact = augment(image.double(), quiet, 0, 0, np.arange(6))
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=torch.finfo(dtype).eps + 1e-12)
    noisy = augment(image, section(0.5, noise={"std": 0.2}), 0, 0, np.arange(6))
    drawn = pick(key(6), Stream.NOISE, 0.5, 1)[0]
    assert [i for i in range(6) if not torch.equal(noisy[i], image[i])] == list(drawn)


def test_channels_last_gives_the_same() -> None:
    image, cfg = batch(6, (12, 16), 3), section(0.5, **OPTIONS)
    wanted = augment(image, cfg, 0, 0, np.arange(6))
    given_ = augment(image.to(memory_format=torch.channels_last), cfg, 0, 0, np.arange(6))
    torch.testing.assert_close(given_, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_flips_are_exact_involutions_and_commute(size: tuple[int, ...]) -> None:
    image, index = batch(5, size), np.arange(5)
    both = section(1, flip={"axes": (0, 1)})
    torch.testing.assert_close(augment(image, both, 0, 0, index), image.flip(2, 3), rtol=0, atol=0)
    assert torch.equal(augment(augment(image, both, 0, 0, index), both, 0, 1, index), image)
    one, other = section(1, flip={"axes": (0,)}), section(1, flip={"axes": (1,)})
    there = augment(augment(image, one, 0, 0, index), other, 0, 0, index)
    assert torch.equal(there, augment(augment(image, other, 0, 0, index), one, 0, 0, index))


def test_flips_are_drawn_per_axis() -> None:
    motion = affine.draw(section(0.5, flip={"axes": (1, 0, 1)}), key(4000), (4, 4))
    assert list(motion.flips) == [0, 1]
    heads = [np.isin(np.arange(4000), motion.flips[axis]) for axis in (0, 1)]
    assert all(abs(head.mean() - 0.5) < 0.03 for head in heads)
    assert abs((heads[0] & heads[1]).mean() - 0.25) < 0.03


def test_a_flip_of_a_missing_axis_is_refused() -> None:
    with pytest.raises(ValueError, match="axis 2, but the images have axes 0 to 1"):
        augment(batch(2, (4, 4)), section(1, flip={"axes": (2,)}), 0, 0, np.arange(2))


@pytest.mark.parametrize(("image", "index"), [(torch.zeros(2, 3, 4), np.arange(2)), (torch.zeros(2, 1, 4, 4), [0])])
def test_wrong_shapes_are_refused(image: torch.Tensor, index: np.ndarray) -> None:
    with pytest.raises(ValueError, match="augment takes"):
        augment(image, AugmentSection(), 0, 0, index)


def smooth(size: tuple[int, ...]) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(0).normal(size=size), 2.5) * 10


def test_rotation_is_scipys_on_a_grid_that_is_not_square() -> None:
    picture, cfg = smooth((48, 64)), section(1, rotate={"degrees": 40})
    image = torch.from_numpy(picture).expand(8, 1, 48, 64)
    out = augment(image, cfg, 0, 0, np.arange(8)).numpy()[:, 0]
    angles = np.rad2deg(np.arcsin(affine.draw(cfg, key(8), (48, 64)).linear[:, 0, 1]))
    assert np.ptp(angles) > 20
    for angle, turned in zip(angles, out, strict=True):
        wanted = ndimage.rotate(picture, angle, reshape=False, order=1, mode="nearest")
        np.testing.assert_allclose(turned, wanted, atol=1e-6)


def test_3d_motion_is_scipys_affine() -> None:
    size = (12, 16, 20)
    volume, cfg = (
        smooth(size),
        section(1, **{name: OPTIONS[name] for name in ("rotate", "scale", "shear", "shift", "crop")}),
    )
    out = augment(torch.from_numpy(volume).expand(4, 1, *size), cfg, 0, 0, np.arange(4)).numpy()[:, 0]
    motion = affine.draw(cfg, key(4), size)
    centre = (np.asarray(size) - 1) / 2
    for case, moved in enumerate(out):
        origin = centre + motion.offset[case] - motion.linear[case] @ centre
        wanted = ndimage.affine_transform(volume, motion.linear[case], origin, order=1, mode="nearest")
        np.testing.assert_allclose(moved, wanted, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_rotations_are_rigid_uniform_and_bounded(size: tuple[int, ...]) -> None:
    linear = affine.draw(section(1, rotate={"degrees": 20}), key(), size).linear
    d = len(size)
    np.testing.assert_allclose(linear @ linear.transpose(0, 2, 1), np.broadcast_to(np.eye(d), linear.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(linear), 1, atol=1e-12)
    cosine = linear[:, 0, 0] if d == 2 else (np.trace(linear, axis1=1, axis2=2) - 1) / 2
    degrees = np.rad2deg(np.arccos(np.clip(cosine, -1, 1)))
    assert stats.kstest(degrees / 20, "uniform").pvalue > 1e-3
    if d == 3:
        axis = np.stack([linear[:, 2, 1] - linear[:, 1, 2], linear[:, 0, 2] - linear[:, 2, 0]], -1)
        assert np.abs((axis / np.maximum(np.sin(np.deg2rad(degrees)), 1e-9)[:, None] / 2).mean(0)).max() < 0.05


@pytest.mark.parametrize("size", SIZES)
def test_scale_shear_shift_and_crop_are_within_their_bounds(size: tuple[int, ...]) -> None:
    d, extent = len(size), np.asarray(size)
    zoom = 1 / affine.draw(section(1, scale={"fraction": 0.2}), key(), size).linear[:, 0, 0]
    assert stats.kstest((zoom - 0.8) / 0.4, "uniform").pvalue > 1e-3
    shear = affine.draw(section(1, shear={"degrees": 10}), key(), size).linear
    np.testing.assert_allclose(np.linalg.det(shear), 1, atol=1e-12)
    assert np.rad2deg(np.arctan(np.abs(shear[:, 1, (2 if d == 3 else 0)]))).max() <= 10 + 1e-9
    shift = affine.draw(section(1, shift={"fraction": 0.1}), key(), size).offset / extent
    assert 0.095 < np.abs(shift).max() <= 0.1
    crop = affine.draw(section(1, crop={"fraction": 0.3}), key(), size)
    edge = np.diagonal(crop.linear, axis1=1, axis2=2)
    assert 0.7 <= edge.min() < 0.705
    assert edge.max() <= 1
    assert (np.abs(crop.offset) <= (1 - edge) * extent / 2 + 1e-12).all()


def test_a_shift_moves_by_its_share() -> None:
    image, cfg = torch.zeros(6, 1, 32, 32), section(1, shift={"fraction": 0.2})
    image[:, :, 16, 16] = 1
    out = augment(image, cfg, 0, 0, np.arange(6)).double()
    ruler = torch.arange(32.0).double()
    for axis, keep in ((0, 3), (1, 2)):
        centre = (out.sum((1, keep)) * ruler).sum(1) / out.sum((1, 2, 3))
        np.testing.assert_allclose(16 - centre, affine.draw(cfg, key(6), (32, 32)).offset[:, axis], atol=1e-4)


def test_gamma_keeps_the_range() -> None:
    image = batch(8, (12, 16)) * 3
    out = augment(image, section(1, gamma={"strength": 1}), 0, 0, np.arange(8))
    torch.testing.assert_close(out.amax((1, 2, 3)), image.amax((1, 2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.amin((1, 2, 3)), image.amin((1, 2, 3)), rtol=0, atol=1e-5)
    assert (out - image).abs().amax((1, 2, 3)).min() > 1e-3


def test_contrast_keeps_the_mean_and_brightness_the_spread() -> None:
    image = batch(64, (12, 16))
    out = augment(image, section(1, contrast={"fraction": 0.4}), 0, 0, np.arange(64))
    torch.testing.assert_close(out.mean((1, 2, 3)), image.mean((1, 2, 3)), rtol=0, atol=1e-6)
    factor = out.std((1, 2, 3)) / image.std((1, 2, 3))
    assert 0.6 <= factor.min() < 0.7
    assert 1.3 < factor.max() <= 1.4
    added = augment(image, section(1, brightness={"shift": 0.3}), 0, 0, np.arange(64)) - image
    assert added.std((1, 2, 3)).max() < 1e-6
    assert 0.2 < added.abs().max() <= 0.3 + 1e-6


def test_noise_has_its_deviation_and_is_new_for_every_case() -> None:
    image = torch.zeros(64, 1, 40, 40)
    out = augment(image, section(1, noise={"std": 0.5}), 0, 0, np.arange(64))
    drawn = pick(key(64), Stream.NOISE, 1, 1)[1][:, 0] * 0.5
    np.testing.assert_allclose(out.std((1, 2, 3)), drawn, rtol=0.1)
    assert abs(np.corrcoef(out.flatten(1).numpy()) - np.eye(64)).max() < 0.15


@pytest.mark.parametrize("size", SIZES)
def test_blur_is_scipys(size: tuple[int, ...]) -> None:
    image = batch(6, size, 1).double()
    out = augment(image, section(1, blur={"sigma_px": 1.5}), 0, 0, np.arange(6)).numpy()
    sigmas = pick(key(6), Stream.BLUR, 1, 1)[1][:, 0] * 1.5
    for sigma, picture, blurred in zip(sigmas, image.numpy(), out, strict=True):
        np.testing.assert_allclose(
            blurred[0], ndimage.gaussian_filter(picture[0], sigma, mode="nearest", radius=5), atol=1e-9
        )


@pytest.mark.parametrize("size", SIZES)
def test_cutout_has_its_area_and_the_mean(size: tuple[int, ...]) -> None:
    image = batch(12, size)
    out = augment(image, section(1, cutout={"fraction": 0.5}), 0, 0, np.arange(12))
    changed = (out != image).all(1)
    assert (changed.flatten(1).sum(1) == np.prod([round(0.5 * edge) for edge in size])).all()
    for before, after, where in zip(image, out, changed, strict=True):
        torch.testing.assert_close(after[:, where], before.mean().expand_as(after[:, where]), rtol=0, atol=1e-6)
    assert len({tuple(np.argwhere(one.numpy())[0]) for one in changed}) > 6


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 5.0])
def test_mixup_weights_are_the_larger_half_of_a_beta(alpha: float) -> None:
    index = np.arange(5000)
    share = mixup_weights(Mixup(p=1, alpha=alpha), 0, 0, index)
    assert share.min() >= 0.5
    assert share.max() <= 1
    side = uniform(key(5000), 99, 1)[:, 0] < 0.5
    assert stats.kstest(np.where(side, share, 1 - share), stats.beta(alpha, alpha).cdf).pvalue > 1e-3
    some = mixup_weights(Mixup(p=0.3, alpha=alpha), 0, 0, index)
    assert abs((some < 1).mean() - 0.3) < 0.06
    assert (mixup_weights(Mixup(alpha=alpha), 0, 0, index) == 1).all()
    np.testing.assert_array_equal(mixup_weights(Mixup(p=1, alpha=alpha), 0, 0, index[40:41]), share[40:41])


MOTION = {name: OPTIONS[name] for name in ("flip", "rotate", "scale", "shear", "shift", "crop")}


def label_maps(n: int, size: tuple[int, ...], classes: int = 3) -> torch.Tensor:
    """(n, 1, *size) uint8: smooth shapes of each class."""
    draw = np.random.default_rng(1)
    fields = ndimage.gaussian_filter(draw.normal(size=(n, classes, *size)), (0, 0, *[1.5] * len(size)))
    return torch.from_numpy(fields.argmax(1)[:, None].astype(np.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("p", [0.5, 1.0])
def test_a_label_beside_it_changes_no_bit_of_an_image(size: tuple[int, ...], p: float) -> None:
    image, label, cfg = batch(9, size), label_maps(9, size), section(p, **OPTIONS)
    given_ = label.clone()
    moved, found = augment_pair(image, label, cfg, 5, 2, np.arange(9))
    assert torch.equal(moved, augment(image, cfg, 5, 2, np.arange(9)))
    assert torch.equal(label, given_), "the label is not written to"
    assert found is not None
    assert found.dtype == torch.uint8
    assert found.shape == label.shape
    for case in range(9):
        alone = augment_pair(image[case : case + 1], label[case : case + 1], cfg, 5, 2, np.asarray([case]))[1]
        assert alone is not None
        assert (alone[0] != found[case]).float().mean() < 0.01, "but for voxels on the edge of two classes"


@pytest.mark.parametrize("size", [(48, 64), (24, 28, 32)])
def test_a_label_moves_with_its_image(size: tuple[int, ...]) -> None:
    """A bright box and its mask still coincide, whatever happens to both."""
    mask = torch.zeros((12, 1, *size), dtype=torch.uint8)
    mask[:, :, *(slice(edge // 4, edge // 2 + 3) for edge in size)] = 1
    image, found = augment_pair(mask.float(), mask, section(1, **MOTION), 0, 0, np.arange(12))
    assert found is not None
    assert torch.equal(image > 0.5, found == 1)
    assert (found != mask).flatten(1).any(1).all()


def test_a_label_is_flipped_as_its_image_is() -> None:
    label = label_maps(6, (12, 16))
    image, found = augment_pair(label.float(), label, section(0.5, flip={"axes": (0, 1)}), 0, 0, np.arange(6))
    assert torch.equal(image, found.float())
    assert not torch.equal(label, found)


@pytest.mark.parametrize("values", [(0, 7), (0, 3, IGNORED), tuple(range(0, 60, 3)), (IGNORED,)])
def test_values_of_a_label_are_never_invented(values: tuple[int, ...]) -> None:
    label = torch.tensor(values, dtype=torch.uint8)[label_maps(8, (24, 20), len(values)).long()]
    found = augment_pair(label.float(), label, section(1, **MOTION), 0, 0, np.arange(8))[1]
    assert found is not None
    assert set(found.unique().tolist()) <= set(values)
    assert (IGNORED in found.unique().tolist()) == (IGNORED in values)


def test_the_class_with_the_largest_share_wins_however_many_there_are() -> None:
    classes = 2 * CLASSES_AT_ONCE + 3
    label, cfg = label_maps(4, (40, 36), classes), section(1, rotate={"degrees": 30}, scale={"fraction": 0.2})
    found = augment_pair(label.float(), label, cfg, 0, 0, np.arange(4))[1]
    shares = augment((label == torch.arange(classes).view(1, -1, 1, 1)).float(), cfg, 0, 0, np.arange(4))
    top = shares.topk(2, 1).values
    clear = (top[:, 0] - top[:, 1]) > 1e-4
    assert clear.float().mean() > 0.99
    assert found is not None
    assert torch.equal(found[:, 0][clear].long(), shares.argmax(1)[clear])


def test_nothing_drawn_gives_the_same_objects_and_intensities_leave_the_label() -> None:
    image, label = batch(3, (12, 16)), label_maps(3, (12, 16))
    same = augment_pair(image, label, AugmentSection(), 0, 0, np.arange(3))
    assert same[0] is image
    assert same[1] is label
    brighter, found = augment_pair(image, label, section(1, gamma={}, noise={}, cutout={}), 0, 0, np.arange(3))
    assert not torch.equal(brighter, image)
    assert torch.equal(found, label)
    assert augment_pair(image, None, section(1, rotate={}), 0, 0, np.arange(3))[1] is None
