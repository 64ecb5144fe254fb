"""Contenders that train in turns on one GPU: all start at once, compile beside each other, and then go A B C A B C."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.processes import END, Process
from benchmarks.gpu.results import Recorder
from benchmarks.gpu.turns import Turns, work_in_turns
from benchmarks.measure import Measurement, Task

_SHARE_TO_BEGIN = 0.75
"""Of a group's time: who is not ready to train by then is left out, so that the others have their turns."""

_SECONDS_TO_END = 60.0


@dataclass(frozen=True)
class Place:
    """Where the processes of a group run.

    Attributes:
        folder: for their logs.
        environment: variables of theirs, such as the GPU that they see.
    """

    folder: Path
    environment: Mapping[str, str]


def in_groups(tasks: Sequence[Task], needs: Mapping[str, float], capacity: float) -> list[list[Task]]:
    """Return tasks in groups that fit into memory together; the first task is in every group, to be compared with.

    A task that does not fit beside the first has a group of its own; one that does not fit at all is in no group.

    Args:
        tasks: the first is the one that the others are compared with.
        needs: bytes, by label.
        capacity: bytes of the GPU.
    """
    fitting = [task for task in tasks if needs[task.label] <= capacity]
    if not fitting:
        return []
    first = fitting[0]
    groups = [[first]]
    for task in fitting[1:]:
        if needs[task.label] + needs[first.label] > capacity:
            groups.append([task])
        elif sum(needs[one.label] for one in groups[-1]) + needs[task.label] <= capacity and first in groups[-1]:
            groups[-1].append(task)
        else:
            groups.append([first, task])
    return groups


def train_side_by_side(
    tasks: Sequence[Task], turns: Turns, until: float, place: Place, recorder: Recorder, first_round: int = 0
) -> None:
    """Train the tasks of a group in turns, as far as the time goes; every turn is kept when it is done.

    Args:
        tasks: contenders, whose settings have `turns.total` steps.
        turns: of each.
        until: when to end, of the monotonic clock.
        place: see there.
        recorder: for what is found.
        first_round: the number of the first round.
    """
    begun = time.monotonic()
    with ExitStack() as ending:
        processes: dict[str, Process] = {}
        for task in tasks:
            processes[task.label] = process = _start(task, turns, place)
            ending.callback(process.end)
        group = _Group({task.label: task for task in tasks}, processes, recorder)
        group.wait_until_ready(begun + _SHARE_TO_BEGIN * (until - begun))
        for number in range(turns.count):
            if not group.make_round(first_round + number, until):
                recorder.leave_out(f"{_names(tasks)}: round {first_round + number + 1}, for which no time was left")
                return
        group.wait_for_the_end(min(until, time.monotonic() + _SECONDS_TO_END))


def _start(task: Task, turns: Turns, place: Place) -> Process:
    count = task.settings.processes
    environment = place.environment if count == 1 else {}  # several processes see all GPUs
    arguments = (task.contender, task.settings, turns)
    return Process(task.label, work_in_turns, arguments, place.folder, environment, count)


def _names(tasks: Sequence[Task]) -> str:
    return ", ".join(task.label for task in tasks)


class _Group:
    def __init__(self, tasks: dict[str, Task], processes: dict[str, Process], recorder: Recorder) -> None:
        self._tasks, self._processes, self._recorder = tasks, dict(processes), recorder

    def wait_until_ready(self, until: float) -> None:
        for label, process in list(self._processes.items()):
            message = process.receive(until)
            if self._is_there(label, message):
                self._record(label, -1, message)
                self._recorder.say(f"{label}: ready")

    def make_round(self, number: int, until: float) -> bool:
        """Give everyone a turn; return whether the time was enough."""
        for label, process in list(self._processes.items()):
            if time.monotonic() >= until:
                return False
            process.go_on()
            message = process.receive(until)
            if self._is_there(label, message):
                self._record(label, number, message)
                self._recorder.say(f"{label}: round {number + 1}: {_in_words(message['values'])}")
        return True

    def wait_for_the_end(self, until: float) -> None:
        for label, process in list(self._processes.items()):
            message = process.receive(until)
            if self._is_there(label, message):
                raise AssertionError(f"{label} has made all its steps, and goes on")

    def _is_there(self, label: str, message: dict[str, Any]) -> bool:
        """Whether a process goes on; one that does not is ended, so that others have its memory."""
        if message["kind"] != END:
            return True
        self._processes.pop(label).end()
        self._record(label, -1, message)
        if message["status"] != "ok":
            self._recorder.leave_out(f"{label}: {message['status']}: {message['message']}")
        return False

    def _record(self, label: str, number: int, message: dict[str, Any]) -> None:
        task = self._tasks[label]
        settings, values = asdict(task.settings), message.get("values", {})
        words = message.get("message", "")
        self._recorder.add(Measurement(label, task.contender, number, settings, message["status"], words, values))


def _in_words(values: dict[str, Any]) -> str:
    if "step_seconds" not in values:
        return f"{max(values.values()) / 1e12:,.4g} Tflop/s"
    rate = sum(values["predicted"]) / sum(values["step_seconds"])
    return f"{rate:,.0f} tokens/s, {values['peak_bytes'] / 2**30:.2f} GiB"
