"""What a run trains: the interface between the engine and its tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

from mixln.errors import InputError
from mixln.training.callback import Callback
from mixln.training.config import TrainingConfig
from mixln.training.objective import Batch, Evaluation, Objective, Reduce, Share

_WEIGHTS_FILE = "model.safetensors"


class Task(ABC):
    """What a run trains. It holds its configuration and its data, and nothing that training changes.

    A task defines `identity`, `build`, `objective`, `batch`, `weight` and `evaluate`; the rest has defaults that suit a
    model which `build` returns on the CPU with its initial weights. The methods stand here in the order of a run. All
    processes call them, but for `identity`, `warnings`, `describe` and `save`, which the main process calls alone.
    `batch` and `weight` are called in a background thread, some steps ahead, and may be called for a step again.

    Attributes:
        config: of the run.
        unit: what a batch's weight counts, in the plural; the metrics bear its name.
        positions: vectors of a row that go through each matrix: of a sequence, its tokens.
    """

    config: TrainingConfig
    unit: str = "rows"
    positions: int = 1

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return what of the task may not change when a run is resumed, as JSON; it stands in `recipe.json`.

        All fields of `config` but `execution` and `faults` stand beside it, and may not change either.
        """

    def warnings(self) -> list[str]:
        """Return a sentence for everything about the configuration that its owner should know."""
        return []

    def callbacks(self) -> list[Callback]:
        """Return new callbacks that belong to the task."""
        return []

    def widths(self) -> tuple[int, int]:
        """Return the sizes of the matrices that bfloat16 is measured on, (inputs, outputs)."""
        return 1024, 4096

    @abstractmethod
    def build(self) -> nn.Module:
        """Return the model, on the meta device or the CPU, to be shared out among processes.

        It must be the same every time and on every process; PyTorch's global generator is seeded when this is called.

        Raises:
            InputError: it cannot be built or opened, or does not fit the configuration.
        """

    def build_seeded(self) -> nn.Module:
        """Return what `build` gives, its draws seeded with the run's seed; the random state stays as it is."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.config.seed)
            return self.build()

    @abstractmethod
    def objective(self, model: Any, device: torch.device, *, compiled: bool) -> Objective:
        """Return what is to be minimised for a model that `build` gave, or one that `load` did.

        Args:
            model: see above; may be changed in place.
            device: that it will be on.
            compiled: whether it will be compiled.
        """

    def place(self, objective: Any, device: torch.device) -> None:
        """Give a model, shared out or not, its memory on the device and its initial weights; for training."""
        nn.Module.to(objective.model, device).train()

    def restart(self, objective: Any) -> None:
        """Give a placed model its initial weights again."""
        fresh = self.objective(self.build_seeded(), torch.device("cpu"), compiled=False)
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(objective.model, get_model_state_dict(fresh.model), options=options)

    def adapt(self, objective: Any, forward: Callable[[], object], reduce: Reduce) -> None:
        """Set what one forward pass over real data decides, before the first step.

        Args:
            objective: of a model with its initial weights, shared out or not.
            forward: runs it once in training mode, on the first batch, without gradients.
            reduce: over the processes that have a share of that batch.
        """
        del objective, forward, reduce

    def undecayed(self, model: Any) -> Collection[str]:
        """Return the names of the parameters that weight decay leaves alone, beside those of one dimension."""
        del model
        return ()

    @abstractmethod
    def batch(self, step: int, share: Share) -> Batch:
        """Return a process's share of the batch of a step, from 0: a pure function of (seed, step); on the CPU.

        Draw what is random for the whole batch, and take the share then, so that it is the same on any number of
        processes.
        """

    @abstractmethod
    def weight(self, batch: Batch) -> int:
        """Return what the loss of a batch is to be divided by, such as the number of predicted tokens."""

    def rows(self, step: int) -> Sequence[int]:
        """Return the numbers of the rows in the whole batch of a step, for messages."""
        del step
        return ()

    @abstractmethod
    def evaluate(self, objective: Any, device: torch.device, share: Share, reduce: Reduce) -> Evaluation:
        """Return the validation of a model, the same on every process; called in evaluation mode, without gradients.

        Args:
            objective: of the model.
            device: that it is on.
            share: of this process. Processes that share a model have to make equally many forwards.
            reduce: over the processes.
        """

    def forward(self, objective: Any, batch: Batch) -> None:
        """Run the model once on a batch, to see which of its modules goes wrong."""
        objective(**batch)

    def layers(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        """Return every parameter with the name of the layer that it is measured in; by default that of a child."""
        return [(name.partition(".")[0], parameter) for name, parameter in model.named_parameters()]

    def activations(self, objective: Any, batch: Batch, autocast_dtype: torch.dtype | None) -> dict[str, Tensor]:
        """Return measures of what goes through the layers on a batch, by name; the random state stays as it is."""
        del objective, batch, autocast_dtype
        return {}

    def describe(self, model: Any, folder: Path) -> None:
        """Write into the folder of a checkpoint what makes its weights a model again, beside them."""
        del model, folder

    def finish(self, objective: Any) -> dict[str, Any] | None:
        """Make a trained model what is to be saved, and return the task's result, as JSON.

        `objective.model` may become another model.

        Raises:
            InputError: it cannot be finished.
        """
        del objective

    def save(self, model: Any, weights: dict[str, Any], folder: Path) -> None:
        """Write a finished model into a folder.

        Args:
            model: it may be sharded.
            weights: all of it, whole.
            folder: which exists, and is empty.
        """
        del model
        # copies, since safetensors refuses weights that share memory, as tied ones do
        copies = {name: weight.to("cpu", copy=True).contiguous() for name, weight in weights.items()}
        save_file(copies, folder / _WEIGHTS_FILE)

    def load(self, folder: Path, device: torch.device) -> nn.Module:
        """Open what `save` wrote, in evaluation mode.

        Raises:
            InputError: it cannot be read.
        """
        model = self.build_seeded()
        try:
            model.load_state_dict(load_file(folder / _WEIGHTS_FILE))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise InputError(f"the finished model {folder} is damaged ({error}). Delete it to train it anew") from error
        return nn.Module.to(model, device).eval()
