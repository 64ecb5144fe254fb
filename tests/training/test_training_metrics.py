from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import warnings
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mixln.errors import InputError
from mixln.training import read_metrics
from mixln.training.callbacks.metrics import MetricsLog, TrackerWarning
from mixln.training.callbacks.trackers import TRACKERS, TrackedRun


def tensorboard(folder: Path, name: str = "loss") -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


class Recorder:
    """A tracker that notes what it gets, and fails on demand."""

    def __init__(self, run: TrackedRun) -> None:
        self.run, self.calls, self.fails = run, list[str](), False
        Recorder.last = self

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._note(f"log {step} {dict(values)}")

    def rewind(self, step: int) -> None:
        self._note(f"rewind {step}")

    def flush(self) -> None:
        self._note("flush")

    def close(self) -> None:
        self._note("close")

    def _note(self, call: str) -> None:
        if self.fails:
            raise ConnectionError("the network is down")
        self.calls.append(call)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(TRACKERS, "recorder", Recorder)
    return "recorder"


def test_a_line_a_step_and_the_same_in_tensorboard(tmp_path: Path) -> None:
    with closing(MetricsLog(tmp_path)) as log:
        log.write(1, {"loss": 2.5, "gradient_norm/layer_01": 0.5})
        log.write(2, {"loss": float("nan"), "tokens": float("inf")})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 2.5, "gradient_norm/layer_01": 0.5},
        {"step": 2, "loss": None, "tokens": None},
    ]
    assert tensorboard(tmp_path, "gradient_norm/layer_01") == [(1, 0.5)]
    assert len(tensorboard(tmp_path)) == 2


@pytest.mark.parametrize("in_one_process", [True, False])
def test_steps_written_again_do_not_appear_twice(
    tmp_path: Path, in_one_process: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # of files opened in one second, TensorBoard reads the tenth of a process before the ninth
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer._global_uid._value", 9)
    with closing(MetricsLog(tmp_path)) as log:
        for step in range(1, 6):
            log.write(step, {"loss": float(step)})
        if in_one_process:
            log.rewind(3)
            log.write(4, {"loss": 40.0})
    if not in_one_process:
        with closing(MetricsLog(tmp_path, resume_step=3)) as log:
            log.write(4, {"loss": 40.0})
    expected = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == expected
    assert tensorboard(tmp_path) == expected


def test_without_trackers_there_is_the_file_alone(tmp_path: Path) -> None:
    with closing(MetricsLog(tmp_path, trackers=())) as log:
        log.write(1, {"loss": 1.0})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "trackers.json"]


def test_a_tracker_gets_every_call_and_is_told_its_run(tmp_path: Path, recorder: str) -> None:
    with closing(MetricsLog(tmp_path / "mix", trackers=[recorder], config={"seed": 3})) as log:
        log.write(1, {"loss": 1.0})
        log.flush()
        log.rewind(0)
    assert Recorder.last.calls == ["log 1 {'loss': 1.0}", "flush", "rewind 0", "close"]
    run = Recorder.last.run
    assert (run.folder, run.name, run.config, run.resume_step, run.logged_step) == (
        tmp_path / "mix",
        "mix",
        {"seed": 3},
        0,
        0,
    )


def test_a_resumed_run_is_the_same_run_and_knows_how_far_its_trackers_were(tmp_path: Path, recorder: str) -> None:
    def start(resume_step: int, trackers: list[str], last: int) -> None:
        with closing(MetricsLog(tmp_path, resume_step, trackers)) as log:
            for step in range(resume_step + 1, last + 1):
                log.write(step, {"loss": 1.0})

    start(0, [recorder], last=9)
    first = Recorder.last.run
    start(4, [recorder], last=6)  # killed again before it had caught up
    assert (Recorder.last.run.run_id, Recorder.last.run.logged_step) == (first.run_id, 9)
    start(4, [], last=20)  # a stretch that the tracker does not see
    start(16, [recorder], last=17)
    assert (Recorder.last.run.run_id, Recorder.last.run.logged_step) == (first.run_id, 9)
    start(0, [recorder], last=1)  # from the beginning, since there was no checkpoint
    assert (Recorder.last.run.run_id, Recorder.last.run.logged_step) == (first.run_id, 17)


def test_a_tracker_that_fails_is_warned_of_once_and_the_run_goes_on(tmp_path: Path, recorder: str) -> None:
    with closing(MetricsLog(tmp_path, trackers=["tensorboard", recorder])) as log:
        log.write(1, {"loss": 1.0})
        Recorder.last.fails = True
        with pytest.warns(TrackerWarning, match="recorder failed .ConnectionError: the network is down"):
            log.write(2, {"loss": 2.0})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            log.write(3, {"loss": 3.0})
            log.flush()
            Recorder.last.fails = False
            log.write(4, {"loss": 4.0})
            Recorder.last.fails = True
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert [step for step, _ in tensorboard(tmp_path)] == [1, 2, 3, 4]
    assert Recorder.last.calls == ["log 1 {'loss': 1.0}", "log 4 {'loss': 4.0}"]


def test_a_tracker_that_cannot_start_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(_run: TrackedRun) -> Recorder:
        raise TimeoutError("no answer")

    monkeypatch.setitem(TRACKERS, "unreachable", unreachable)
    with pytest.warns(TrackerWarning, match="unreachable failed"):
        log = MetricsLog(tmp_path, trackers=["unreachable"])
    with closing(log):
        log.write(1, {"loss": 1.0})
    assert len(read_metrics(tmp_path)) == 1


def test_a_tracker_that_its_user_can_mend_is_an_error(
    tmp_path: Path, recorder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(_run: TrackedRun) -> Recorder:
        raise InputError("log in first")

    monkeypatch.setitem(TRACKERS, "locked", locked)
    with pytest.raises(InputError, match="log in first"):
        MetricsLog(tmp_path, trackers=[recorder, "locked"])
    assert Recorder.last.calls == ["close"]
    with pytest.raises(InputError, match="no tracker 'none'"):
        MetricsLog(tmp_path, trackers=["none"])


def test_a_full_disk_leaves_the_lines_before_whole(tmp_path: Path) -> None:
    """The system's limit on file sizes cuts a line in half, as a full disk does."""
    with closing(MetricsLog(tmp_path, trackers=())) as log:
        log.write(1, {"loss": 1.0})
        size = (tmp_path / "metrics.jsonl").stat().st_size
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 7, before[1]))
        try:
            with pytest.raises(InputError, match=r"cannot write .*metrics\.jsonl: File too large\. Make room"):
                log.write(2, {"loss": 2.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert (tmp_path / "metrics.jsonl").stat().st_size == size
        log.write(2, {"loss": 2.0})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}]


@pytest.mark.slow
def test_a_kill_loses_no_line_that_was_written(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, sys; from mixln.training.callbacks.metrics import MetricsLog\n"
        "log = MetricsLog(pathlib.Path(sys.argv[1]), trackers=())\n"
        "for step in range(1, 8): log.write(step, {'loss': 1.0})\n"
        "os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=os.environ, check=False)
    assert killed.returncode == -9
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 8))


def test_a_damaged_tracker_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "trackers.json").write_text("{")
    with pytest.raises(InputError, match=r"trackers\.json is damaged"):
        MetricsLog(tmp_path)


def test_a_run_that_starts_anew_does_not_mind_damaged_metrics(tmp_path: Path) -> None:
    with closing(MetricsLog(tmp_path)):
        (tmp_path / "metrics.jsonl").write_text("garbage\n")
    with closing(MetricsLog(tmp_path)) as log:
        log.write(1, {"loss": 1.0})
    (tmp_path / "metrics.jsonl").write_text("garbage\n")
    with pytest.raises(InputError, match=r"metrics\.jsonl is damaged"):
        MetricsLog(tmp_path, resume_step=1)
