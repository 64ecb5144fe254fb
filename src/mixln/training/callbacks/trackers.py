"""Where metrics go beside `metrics.jsonl`: TensorBoard, Weights & Biases, trackio; each optional, each one class."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mixln.errors import InputError

PROJECT = "mixln"
"""The project that runs belong to, in trackers that have projects (`WANDB_PROJECT` overrides it for wandb)."""


class Tracker(Protocol):
    """Takes the metrics of one run. `MetricsLog` sees to it that a failure in one does not stop the run."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take the values of one step; a step that it has already must not come to appear twice."""

    def rewind(self, step: int) -> None:
        """Prepare for steps after `step` being logged again."""

    def flush(self) -> None:
        """Bring what was logged to safety, if the tracker can."""

    def close(self) -> None:
        """End the run."""


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told about its run.

    Attributes:
        folder: of the run.
        run_id: made once and kept in the folder, so that a resumed run is the same run.
        resume_step: the step that the run goes on from.
        logged_step: the last step that this tracker was given before; more than `resume_step` after a kill between
            checkpoints, and then the steps between come again.
        config: what is trained, and how, as JSON.
    """

    folder: Path
    run_id: str
    resume_step: int = 0
    logged_step: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name for people to read: the folder's."""
        return self.folder.absolute().name


class TensorBoardTracker:
    """Event files in `tensorboard/`. TensorBoard forgets by itself the steps from which a resumed run starts again."""

    package = "tensorboard"

    def __init__(self, run: TrackedRun) -> None:
        self._folder = str(run.folder / "tensorboard")
        self._open(run.resume_step)

    def _open(self, resume_step: int) -> None:
        """Open an event file, once the second has passed in which the last one was opened.

        TensorBoard reads event files in the order of their names, and a name tells the order to the second only: of two
        files of one second, the one that takes steps back could come first, and take nothing back.
        """
        from torch.utils.tensorboard import SummaryWriter

        opened = [int(path.name.split(".")[3]) for path in Path(self._folder).glob("events.out.tfevents.*")]
        if opened:
            # no longer than that for a file of a machine whose clock is ahead
            time.sleep(min(max(max(opened) + 1 - time.time(), 0), 1))
        self._writer = SummaryWriter(self._folder, purge_step=resume_step + 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write a scalar for each value."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def rewind(self, step: int) -> None:
        """Begin an event file that takes back the later steps."""
        self._writer.close()
        self._open(step)

    def flush(self) -> None:
        """Write to disk."""
        self._writer.flush()

    def close(self) -> None:
        """Write to disk and close."""
        self._writer.close()


class _ForwardTracker(Tracker):
    """What wandb and trackio share: neither can take a step back, so a step that it has is not sent again.

    Nothing is lost by that: a resumed run repeats such steps bit for bit. Both write by themselves: no need to flush.
    """

    _run: Any
    _logged_step: int

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Hand the values of a new step to the package's own process or thread, which writes by itself."""
        if step > self._logged_step:
            self._run.log(dict(values), step=step)
            self._logged_step = step

    def close(self) -> None:
        """Wait until what was logged is written, as long as the package allows, and end the run."""
        self._run.finish()


class WandbTracker(_ForwardTracker):
    """A run on Weights & Biases (https://docs.wandb.ai), its files in `wandb/`; without network: `WANDB_MODE=offline`.

    A resumed run is the same run there (same id, `resume="allow"`). wandb keeps the first value of a step and accepts
    none for a step before its last (rewinding needs a feature in private preview). Which steps it has, the server says;
    offline, the run's own record.

    Raises:
        InputError: nobody is logged in, or wandb was told something that it cannot do.
    """

    package = "wandb"

    def __init__(self, run: TrackedRun) -> None:
        wandb = _import(self.package)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or PROJECT,
                id=run.run_id,
                name=run.name,
                dir=str(run.folder),
                config=dict(run.config),
                allow_val_change=True,
                resume="allow",
            )
        except (wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
            raise InputError(
                f"wandb cannot start ({error}). Run `wandb login`, set WANDB_MODE=offline, or take wandb out of "
                "execution.trackers"
            ) from error
        self._logged_step = run.logged_step if self._run.offline else self._run.step - 1


class TrackioTracker(_ForwardTracker):
    """A run in trackio (https://huggingface.co/docs/trackio), in `TRACKIO_DIR` or, by its own settings, on a Space.

    It would store a step given twice as two points. It writes twice a second: a kill may cost it the steps of the last
    half second.
    """

    package = "trackio"

    def __init__(self, run: TrackedRun) -> None:
        # trackio finds a run to resume by its name alone
        self._run = _import(self.package).init(
            project=PROJECT, name=f"{run.name}-{run.run_id}", config=dict(run.config), resume="allow", embed=False
        )
        self._logged_step = run.logged_step


TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "trackio": TrackioTracker,
}
"""By the name in `execution.trackers`. A new tracker is one more entry here, and one more name in
`mixln.training.config.ExecutionConfig.trackers`."""


def check_trackers(names: Iterable[str]) -> None:
    """Make sure, before a run starts, that every tracker exists and its package is installed.

    Raises:
        InputError: one does not, or is not.
    """
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"there is no tracker {name!r}. There are: {', '.join(TRACKERS)}")
        if package := getattr(TRACKERS[name], "package", None):
            _import(package)


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"the tracker {package} needs a package that cannot be imported ({error}). Install it: "
            f"pip install 'mixln[{package}]', or take it out of execution.trackers"
        ) from error
