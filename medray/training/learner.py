"""Learner: everything of a training that lives from step to step, and nothing of how it is reported."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from medray.config import ConfigError, Experiment, nearest
from medray.inference.trust import check_rules
from medray.inference.whole import whole_probabilities
from medray.networks.build import build, train_mode
from medray.networks.memory import forecast, require_memory
from medray.pipeline.loader import Feed, Samples, Sampling
from medray.pipeline.patches import Patches, Patching
from medray.pipeline.prepare import Prepared, kind_of
from medray.training.goal import measured_by, monitor_of, monitor_sign, task_of
from medray.training.optim import Schedule, build_optimizer
from medray.training.world import World

Precision = Literal["fp32", "bf16", "fp16"]


def unmarked(part: str) -> None:
    """Nobody asks where the loop is: see profile.py."""


class Learner:
    """Network, optimiser, schedule and the best weights so far, on one worker; state.py takes and gives its state."""

    def __init__(self, experiment: Experiment, prepared: Prepared, world: World) -> None:
        self.experiment = experiment
        self.world = world
        self.rows = {name: prepared.rows(name) for name in ("train", "val", "test")}
        train_targets = prepared.targets[self.rows["train"]]
        self.task = task_of(experiment, prepared)
        self.feed = self._feed(prepared)
        chances = self.task.case_chances(train_targets)
        self._check()
        if kind_of(experiment) == "classes" and len(self.rows["val"]):
            # What would be refused when the training is over.
            check_rules(experiment.trust, prepared.dataset.classes, prepared.targets[self.rows["val"]])
        train = experiment.train
        mixup = experiment.augment.mixup
        self.sampling = Sampling(train.batch_size, experiment.seed, mixup, chances, train.steps_per_epoch)
        self.steps_per_epoch = self.sampling.steps(len(self.rows["train"]))
        self.precision: Precision = precision(train.precision, world.device, self.feed.spatial_dims)
        self.monitor = monitor_of(experiment, prepared)
        self.sign = monitor_sign(self.monitor, experiment.train.mode)

        self.window = prepared.shape[1:]
        # Mirrored answers take as long again for each axis: they are for the last measurement, and for serving.
        self.reading = experiment.window.model_copy(update={"flips": ()})
        built = build(experiment.network, prepared.network_io(self.task.outputs), experiment.seed)
        self.loaded, self.unfit = built.loaded, built.unfit
        self._check_memory(built.network, prepared)
        self.network = self._placed(built.network)
        self.parallel = self._parallel()
        decay = train.ema
        self.averaged = (
            None
            if decay is None
            else AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)  # type: ignore[no-untyped-call]
        )
        self.optimizer = build_optimizer(experiment.optimizer, self.network, self.loaded)
        self.schedule = Schedule(experiment.schedule, self.steps_per_epoch, self.steps_per_epoch * train.epochs)
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=self.precision == "fp16")
        self.head = [p for p in self.network.parameters() if p.requires_grad][-1]
        self.epoch = 0
        self.step = 0
        self.loss_sum = torch.zeros((), device=world.device)
        self.seconds = 0.0
        self.mark: Callable[[str], None] = unmarked
        """Told by the loop at which part of a step it is from here on."""
        self.skipped_steps = 0
        self.best_epoch = 0
        self.best_score = -math.inf
        self.best_weights = self._weights()

    def _check(self) -> None:
        """Refuse at once what could only fail later, or hang."""
        batch = min(self.experiment.train.batch_size, len(self.rows["train"]))
        mistakes = []
        if batch < self.world.size:
            mistakes.append(f"train.batch_size: a batch of {batch} cases cannot be shared by {self.world.size} workers")
        monitor = self.experiment.train.monitor or self.task.monitor
        known = measured_by(self.task)
        if monitor not in known:
            mistakes.append(f"train.monitor: '{monitor}' is not measured{nearest(monitor, known)}")
        axes = self.experiment.augment.flip.axes
        if max(axes, default=0) >= self.feed.spatial_dims:
            mistakes.append(f"augment.flip.axes: {axes} on a grid of {self.feed.spatial_dims} axes")
        if self.experiment.trust.operating_points and kind_of(self.experiment) != "classes":
            mistakes.append("trust.operating_points: are for classes of whole images")
        if self.task.dense and self.experiment.augment.mixup.p:
            mistakes.append("augment.mixup: blends whole cases; it is not for label maps")
        if mistakes:
            raise ConfigError(mistakes)

    def _check_memory(self, network: nn.Module, prepared: Prepared) -> None:
        """Refuse a step that this worker's memory cannot hold, before the first one is tried; keep what it needs."""
        train, device = self.experiment.train, self.world.device
        cases = max(1, math.ceil(train.batch_size / self.world.size / train.accumulate))
        io = prepared.network_io(self.task.outputs)
        name, averaged = self.experiment.optimizer.name, train.ema is not None
        self.memory = need = forecast(network, io, cases, self.precision, name, device.type, averaged)
        # Workers without a GPU of their own share the node's memory.
        require_memory(need, str(device), 1 if device.type == "cuda" else self.world.size)

    def _feed(self, prepared: Prepared) -> Feed:
        """The store and the targets as tensors; class weights come from the training cases alone."""
        weights = prepared.weights.copy()
        rows = self.rows["train"]
        weights[rows] = self.task.case_weights(prepared.targets[rows], weights[rows])
        targets, tensor = torch.from_numpy(prepared.targets), torch.from_numpy(weights)
        if prepared.dense:
            return Patches(prepared.open_cases(self.experiment), patching(self.experiment, prepared), targets, tensor)
        return Samples(torch.from_numpy(prepared.open(self.experiment).images), targets, tensor)

    def _placed(self, network: nn.Module) -> nn.Module:
        """The network on the device, in the memory order and with the norms that the experiment asks for."""
        if self.experiment.scaling.sync_batchnorm:
            if self.world.device.type != "cuda":
                hint = "on CPUs use a network with norm: instance or group"
                raise ConfigError([f"scaling.sync_batchnorm: needs GPUs; {hint}"])
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        network = network.to(self.world.device)
        if self.experiment.train.channels_last:
            network = cast(nn.Module, cast(Any, network).to(memory_format=self._memory_format()))
        return network

    def _memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.feed.spatial_dims == 2 else torch.channels_last_3d

    def _parallel(self) -> nn.Module:
        """What the loop steps: the network, compiled and wrapped as asked."""
        stepped = self.network
        if self.experiment.train.compile:
            stepped = cast(nn.Module, torch.compile(stepped))
        if self.world.size > 1:
            # Buffers are averaged once an epoch instead of broadcast at every step.
            stepped = DistributedDataParallel(stepped, forward_sync_buffers=False, gradient_as_bucket_view=True)
        return stepped

    @property
    def eval_batch(self) -> int:
        """Cases per forward pass without gradients."""
        return max(1, 2 * self.experiment.train.batch_size // self.world.size)

    @property
    def smallest_share(self) -> int:
        """Fewest cases of a batch that a worker gets."""
        return min(self.experiment.train.batch_size, len(self.rows["train"])) // self.world.size

    @property
    def epochs_since_best(self) -> int:
        """Epochs done since the best one."""
        return self.epoch - self.best_epoch

    def ordered(self, image: torch.Tensor) -> torch.Tensor:
        """The image (B, C, *S) in the network's memory order."""
        if not self.experiment.train.channels_last:
            return image
        return image.contiguous(memory_format=self._memory_format())

    def autocast(self) -> AbstractContextManager[Any]:
        """Arithmetic of the forward pass in the experiment's precision."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.world.device.type, dtype)

    def answer(self, network: nn.Module, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Raw output and scores of images (B, C, *S), of a dense task the probabilities of one whole case, twice."""
        if not self.task.dense:
            return self.task.predict(network, self.ordered(image))
        scores = whole_probabilities(self.task, network, image[0], self.reading, self.window)[None]
        return scores, scores

    def gradient_sync(self, last: bool) -> AbstractContextManager[Any]:
        """Average gradients over the workers only with the last part of a batch."""
        if last or not isinstance(self.parallel, DistributedDataParallel):
            return contextlib.nullcontext()
        return cast(AbstractContextManager[Any], self.parallel.no_sync())

    @property
    def steps_into_epoch(self) -> int:
        """Steps of the present epoch that are done."""
        return self.step - self.epoch * self.steps_per_epoch

    @property
    def seconds(self) -> float:
        """How long the training has run, over all its starts."""
        return time.monotonic() - self._began

    @seconds.setter
    def seconds(self, spent: float) -> None:
        self._began = time.monotonic() - spent

    def begin_epoch(self) -> None:
        """Put the network in training mode and, unless this epoch goes on, dropout's draws where it says."""
        train_mode(self.network)
        if self.steps_into_epoch == 0:
            self.loss_sum = torch.zeros((), device=self.world.device)
            torch.manual_seed(hash((self.experiment.seed, self.epoch, self.world.rank)))

    def update(self, clip_norm: float | None) -> None:
        """One step of the optimiser with the gradients at hand; without one where half precision spoilt them."""
        # With several workers gradients are averaged: all of them see the same norm and skip the same steps.
        spoilt = False
        if clip_norm is not None or self._half_on_cpu:
            self.scaler.unscale_(self.optimizer)
            learned = [parameter for parameter in self.network.parameters() if parameter.grad is not None]
            norm = nn.utils.get_total_norm([parameter.grad for parameter in learned if parameter.grad is not None])
            if clip_norm is not None:
                nn.utils.clip_grads_with_norm_(learned, clip_norm, norm)
            spoilt = self._half_on_cpu and not bool(torch.isfinite(norm))
        if not spoilt:
            self.scaler.step(self.optimizer)
        self.skipped_steps += int(spoilt)
        if self.scaler.is_enabled():
            scale = self.scaler.get_scale()
            self.scaler.update()
            self.skipped_steps += int(self.scaler.get_scale() < scale)
        self.optimizer.zero_grad(set_to_none=True)
        if self.averaged is not None:
            self.averaged.update_parameters(self.network)

    @property
    def _half_on_cpu(self) -> bool:
        """Whether single gradients may come out non-finite: torch 2.15's bf16 convolutions on CPUs do so now and then
        (`nn.Conv3d(64, 128, 3)` on grids of a few voxels)."""
        return self.precision == "bf16" and self.world.device.type == "cpu" and self.feed.spatial_dims == 3

    def synchronise_buffers(self) -> None:
        """Average running statistics over the workers, so that all validate the same network."""
        network = self.averaged or self.network
        self.world.mean_(buffer for buffer in network.buffers() if buffer.is_floating_point())

    def close_epoch(self, metrics: dict[str, float]) -> bool:
        """Count the epoch, keep its weights if it is the best so far, and say whether it is."""
        self.epoch += 1
        # An undefined metric (one class in val, say) is worse than any defined one.
        value = metrics.get(self.monitor, math.nan)
        score = -math.inf if math.isnan(value) else self.sign * value
        best = self.best_epoch == 0 or score > self.best_score or not len(self.rows["val"])
        if best:
            self.best_epoch, self.best_score, self.best_weights = self.epoch, score, self._weights()
        return best

    def _weights(self) -> dict[str, torch.Tensor]:
        """A copy on the CPU of the weights that are validated."""
        return _copied(self.averaged.module if self.averaged is not None else self.network)

    def restore_best(self) -> None:
        """Put the best epoch's weights into the network."""
        self.network.load_state_dict(self.best_weights)
        if self.averaged is not None:
            self.averaged.module.load_state_dict(self.best_weights)


def patching(experiment: Experiment, prepared: Prepared) -> Patching:
    """What a training patch of a dense task is."""
    window = experiment.window
    share = float(getattr(experiment.task, "foreground", 0.0))
    return Patching(prepared.shape[1:], share, window.slice_axis, window.neighbours)


def _copied(network: nn.Module) -> dict[str, torch.Tensor]:
    """A copy on the CPU of a network's parameters and buffers."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in network.state_dict().items()}


def precision(asked: str, device: torch.device, spatial_dims: int) -> Precision:
    """The arithmetic to use: `auto` is bf16 where the hardware computes in it, else float32.

    Not for volumes on a CPU: in torch 2.15 the bf16 weight gradient of a small 3D convolution is now and then
    not finite there (`nn.Conv3d(64, 128, 3)` on grids of a few voxels), and float32 was as fast.
    """
    if asked != "auto":
        return cast(Precision, asked)
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = spatial_dims == 2 and torch.cpu._is_avx512_bf16_supported()
    return "bf16" if native else "fp32"
