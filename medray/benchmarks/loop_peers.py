"""The same training by MONAI's SupervisedTrainer and by Lightning's Trainer: network and optimiser are a learner's."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medray.benchmarks import peers
from medray.training.learner import Learner
from medray.training.optim import set_rates


def loss_of(output: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy in float32, whatever the network computes in."""
    return functional.cross_entropy(output.float(), label)


class MonaiSide:
    """Epochs by MONAI's SupervisedTrainer over batches {image, label}."""

    def __init__(self, one: Learner, loader: Any) -> None:
        self._one, self._loader = one, loader

    def seconds(self) -> float:
        """Of one epoch."""
        one = self._one
        trainer = peers.load("monai.engines").SupervisedTrainer(
            device=one.world.device,
            max_epochs=1,
            train_data_loader=self._loader,
            network=one.network,
            optimizer=one.optimizer,
            loss_function=loss_of,
            inferer=self._infer,
            prepare_batch=self._prepare,
            optim_set_to_none=True,
            decollate=False,
        )
        logging.getLogger("ignite.engine.engine.SupervisedTrainer").setLevel(logging.ERROR)
        started = peers.load("ignite.engine").Events.ITERATION_STARTED
        trainer.add_event_handler(started, lambda engine: self._rate(engine.state.iteration - 1))
        began = time.perf_counter()
        trainer.run()
        wait(one)
        return time.perf_counter() - began

    def _rate(self, step: int) -> None:
        set_rates(self._one.optimizer, self._one.schedule.factor(step))

    def _infer(self, inputs: Tensor, network: nn.Module, *_: Any, **__: Any) -> Tensor:
        with self._one.autocast():
            found: Tensor = network(inputs)
        return found

    def _prepare(self, batch: Any, device: torch.device, non_blocking: bool, **_: Any) -> tuple[Tensor, Tensor]:
        image = batch["image"].to(device, non_blocking=non_blocking)
        return self._one.ordered(image), batch["label"].to(device, non_blocking=non_blocking)


class LightningSide:
    """Epochs by Lightning's Trainer over batches {image, label}, or pairs of them."""

    def __init__(self, one: Learner, loader: Iterable[Any]) -> None:
        self._one, self._loader = one, loader
        self._module = _module(one)

    def seconds(self) -> float:
        """Of one epoch, from its begin to its end: the trainer's own set-up is left out."""
        one = self._one
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = peers.load("lightning").Trainer(
                accelerator="gpu" if one.world.device.type == "cuda" else "cpu",
                devices=1,
                max_epochs=1,
                precision={"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}[one.precision],
                barebones=True,
            )
            trainer.fit(self._module, self._loader)
        return float(self._module.ended - self._module.began)


def _module(one: Learner) -> Any:
    """A LightningModule around a learner's network."""

    class Module(peers.load("lightning").LightningModule):  # type: ignore[misc]
        """As Lightning's manual shows it."""

        def __init__(self) -> None:
            super().__init__()
            self.network = one.network
            self.began = self.ended = 0.0

        def training_step(self, batch: Any, index: int) -> Tensor:  # noqa: ARG002
            image, label = (batch["image"], batch["label"]) if isinstance(batch, dict) else batch
            return loss_of(self.network(one.ordered(image)), label)

        def on_train_start(self) -> None:
            self.began = time.perf_counter()

        def on_train_end(self) -> None:
            wait(one)
            self.ended = time.perf_counter()

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
            set_rates(one.optimizer, one.schedule.factor(batch_idx))

        def configure_optimizers(self) -> Any:
            return one.optimizer

    return Module()


def wait(one: Learner) -> None:
    """Until the device has done what it was given."""
    if one.world.device.type == "cuda":
        torch.cuda.synchronize(one.world.device)
