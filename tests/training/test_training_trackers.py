"""Each tracker against the real package, where it is installed; what it cannot show here, against a stand-in."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import struct
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mixln.errors import InputError
from mixln.training.callbacks.metrics import MetricsLog
from mixln.training.callbacks.trackers import TrackedRun, WandbTracker, check_trackers

needs_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
needs_trackio = pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is not installed")


def write_with_a_kill_between(folder: Path, tracker: str) -> None:
    """Steps 1 to 5, taken up again from the checkpoint of step 3 up to step 8."""
    with closing(MetricsLog(folder, trackers=[tracker], config={"seed": 3})) as log:
        for step in range(1, 6):
            log.write(step, {"loss": float(step), "gradient_norm/layer_01": 0.5})
    with closing(MetricsLog(folder, resume_step=3, trackers=[tracker], config={"seed": 3})) as log:
        for step in range(4, 9):
            log.write(step, {"loss": float(step)})


@pytest.fixture
def no_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)


@pytest.mark.usefixtures("no_wandb")
def test_a_missing_package_is_an_error_that_names_the_extra(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pip install 'mixln\[wandb\]', or take it out of execution\.trackers"):
        check_trackers(["tensorboard", "wandb"])
    with pytest.raises(InputError, match=r"mixln\[wandb\]"):
        MetricsLog(tmp_path / "run", trackers=["wandb"])
    assert not (tmp_path / "run").exists()


class FakeWandb(ModuleType):
    """What the wandb tracker uses of wandb: online, with a server that has `server_step` steps."""

    class errors:  # noqa: N801
        class UsageError(Exception):
            pass

        class AuthenticationError(Exception):
            pass

    def __init__(self, server_step: int) -> None:
        super().__init__("wandb")
        self.logged: list[int] = []
        self.settings: dict[str, Any] = {}
        self.error: Exception | None = None
        self.server_step = server_step

    def init(self, **settings: Any) -> SimpleNamespace:
        if self.error is not None:
            raise self.error
        self.settings = settings
        return SimpleNamespace(
            offline=False, step=self.server_step + 1, log=lambda _values, step: self.logged.append(step)
        )


@pytest.fixture
def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb(server_step=5)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return fake


def test_online_the_server_says_which_steps_wandb_has(tmp_path: Path, fake_wandb: FakeWandb) -> None:
    # a kill kept steps 6 to 9 from the server, so these are sent, and 4 and 5 are not
    tracker = WandbTracker(TrackedRun(tmp_path / "mix", "abc", resume_step=3, logged_step=9, config={"seed": 3}))
    for step in range(4, 12):
        tracker.log({"loss": 1.0}, step)
    assert fake_wandb.logged == list(range(6, 12))
    assert fake_wandb.settings["id"] == "abc"
    assert fake_wandb.settings["resume"] == "allow"
    assert fake_wandb.settings["project"] == "mixln"


def test_nobody_logged_in_is_an_error_that_says_what_to_do(tmp_path: Path, fake_wandb: FakeWandb) -> None:
    fake_wandb.error = fake_wandb.errors.UsageError("No API key configured")
    with pytest.raises(InputError, match=r"No API key configured.*wandb login.*WANDB_MODE=offline"):
        MetricsLog(tmp_path, trackers=["wandb"])


@needs_wandb
@pytest.mark.slow
def test_wandb_offline_gets_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    write_with_a_kill_between(tmp_path, "wandb")
    steps: list[int] = []
    runs = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len({path.stem for path in runs}) == 1  # the same id
    for path in runs:
        steps += wandb_steps(path)
    assert sorted(steps) == list(range(1, 9))


def wandb_steps(path: Path) -> list[int]:
    """The steps in a wandb transaction log: after 7 bytes, a LevelDB log of protocol-buffer records."""
    pb2 = importlib.import_module("wandb.proto.wandb_internal_pb2")
    content, position, data, steps = path.read_bytes(), 7, b"", list[int]()
    while position + 7 <= len(content):
        _checksum, length, kind = struct.unpack("<IHB", content[position : position + 7])
        data += content[position + 7 : position + 7 + length]
        position += 7 + length
        if 0 <= 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
        if kind in (1, 4):  # a whole record, or the last part of one
            record = pb2.Record.FromString(data)
            data = b""
            if record.WhichOneof("record_type") == "history":
                steps.append(record.history.step.num)
    return steps


@needs_wandb
@pytest.mark.slow
def test_wandb_itself_says_that_nobody_is_logged_in(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys; from mixln.training.callbacks.metrics import MetricsLog\n"
        "MetricsLog(pathlib.Path(sys.argv[1]), trackers=['wandb'])"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    finished = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "run")],
        env={**environment, "HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "mixln.errors.InputError: wandb cannot start (No API key configured" in finished.stderr


@needs_trackio
def test_trackio_gets_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "trackio" or name.startswith("trackio.")]:
        monkeypatch.delitem(sys.modules, name)  # it reads TRACKIO_DIR when it is imported
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    write_with_a_kill_between(tmp_path / "mix", "trackio")
    database = sqlite3.connect(tmp_path / "trackio" / "mixln.db")
    rows = database.execute("select run_id, run_name, step, metrics from metrics order by step").fetchall()
    assert [row[2] for row in rows] == list(range(1, 9))
    assert len({row[0] for row in rows}) == 1
    assert rows[0][1].startswith("mix-")
    assert json.loads(rows[0][3]) == {"loss": 1.0, "gradient_norm/layer_01": 0.5}
