"""Tables for people, and one JSON file with every raw measurement for everything else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from rich.table import Table

from benchmarks.analysis import (
    Estimate,
    Line,
    Speed,
    all_speeds,
    count_disturbed,
    estimate,
    fit_line,
    matrix_peaks,
    paired_ratio,
    speeds,
    step_pairs,
)
from benchmarks.contenders import MIXLN
from benchmarks.measure import Measurement
from mixln.storage import write_file

_MEBIBYTE = 2**20


class Report(Protocol):
    """What a mode of the benchmark makes of its measurements."""

    def summary(self, measurements: Sequence[Measurement]) -> dict[str, Any]:
        """Return the numbers."""
        ...

    def tables(self, measurements: Sequence[Measurement]) -> list[Table]:
        """Return them for the terminal."""
        ...


def write_results(
    path: Path, machine: dict[str, Any], command: str, measurements: Sequence[Measurement], report: Report
) -> None:
    """Write everything there is so far, whole."""
    results = {
        "command": command,
        "machine": machine,
        "summary": report.summary(measurements),
        "measurements": [asdict(one) for one in measurements],
    }
    write_file(path, json.dumps(results, indent=1) + "\n")


def describe(measurement: Measurement) -> str:
    """Return one line about a measurement that was just made."""
    head = f"round {measurement.round + 1}: {measurement.label}"
    if measurement.status != "ok":
        return f"{head}: {measurement.status}: {measurement.message}"
    if "step_seconds" not in measurement.values:
        peak = max(measurement.values.values())
        return f"{head}: {peak / 1e12:.3f} Tflop/s"
    times = measurement.values["step_seconds"]
    return f"{head}: {times[0]:.2f} s to the first step, then {median(times[1:] or times):.3f} s a step"


@dataclass(frozen=True)
class ContenderReport:
    """mixln beside other trainers."""

    contenders: tuple[str, ...]

    def summary(self, measurements: Sequence[Measurement]) -> dict[str, Any]:
        """Return medians of every contender, and mixln's ratio to each."""
        peaks = matrix_peaks(measurements)
        ours = speeds(measurements, MIXLN)
        return {
            "matrix_peak_flops": _as_dict(_estimate_all(peaks)),
            "disturbed": count_disturbed(measurements, self.contenders),
            **{name: _contender(speeds(measurements, name), ours, peaks) for name in self.contenders},
            "processor_time": {name: _processor_time(measurements, name) for name in self.contenders},
        }

    def tables(self, measurements: Sequence[Measurement]) -> list[Table]:
        """Return one table of speed and memory, and one of the share of the machine's peak."""
        found = self.summary(measurements)
        precision = next((one.settings["precision"] for one in measurements), "")
        return [_speed_table(found, self.contenders, measurements), _peak_table(found, self.contenders, precision)]


def _processor_time(measurements: Sequence[Measurement], name: str) -> dict[str, Any] | None:
    """mixln's tokens by processor time over those of a contender, disturbed measurements included."""
    ours, theirs = (
        {number: one.tokens_per_processor_second for number, one in all_speeds(measurements, label).items()}
        for label in (MIXLN, name)
    )
    return _as_dict(paired_ratio(ours, theirs))


def _contender(theirs: dict[int, Speed], ours: dict[int, Speed], peaks: dict[int, float]) -> dict[str, Any]:
    if not theirs:
        return {}
    rates = {number: one.tokens_per_second for number, one in theirs.items()}
    flops = {number: one.tokens_per_second * one.flops_per_token for number, one in theirs.items()}
    slot_flops = {number: one.slots_per_second * one.flops_per_token for number, one in theirs.items()}
    found: dict[str, Estimate | None] = {
        "tokens_per_second": _estimate_all(rates),
        "slots_per_second": estimate([one.slots_per_second for one in theirs.values()]),
        "step_seconds": estimate([one.step_seconds for one in theirs.values()]),
        "peak_bytes": estimate([one.peak_bytes for one in theirs.values()]),
        "first_step_seconds": estimate([one.first_step_seconds for one in theirs.values()]),
        "busy": estimate([one.busy for one in theirs.values()]),
        "padding": estimate([one.padding for one in theirs.values()]),
        "loss": estimate([one.loss for one in theirs.values()]),
        "mixln_speed_ratio": paired_ratio({n: one.tokens_per_second for n, one in ours.items()}, rates),
        "mixln_memory_ratio": paired_ratio(
            {n: float(one.peak_bytes) for n, one in ours.items()},
            {n: float(one.peak_bytes) for n, one in theirs.items()},
        ),
        "peak_share_predicted": paired_ratio(flops, peaks),
        "peak_share_slots": paired_ratio(slot_flops, peaks),
    }
    # what is compiled in the first round is found in a cache in the later ones
    cold = theirs[0].first_step_seconds if 0 in theirs else None
    return {name: _as_dict(value) for name, value in found.items()} | {"first_step_seconds_cold": cold}


def _speed_table(found: dict[str, Any], contenders: Sequence[str], measurements: Sequence[Measurement]) -> Table:
    table = Table(title="Training, side by side", caption=_method(found, contenders))
    columns = ("predicted tokens/s", "mixln x as fast", "by processor time", "peak MiB", "mixln's memory / its")
    table.add_column("contender")
    for column in (*columns, "first step s (1st round)", "busy", "padding", "loss"):
        table.add_column(column, justify="right")
    for name in contenders:
        values = found[name]
        if not values:
            ratio = _text(found["processor_time"][name], ".2f")
            empty = [""] * (len(table.columns) - 4)
            table.add_row(name, _problem(measurements, name), "", ratio, *empty)
            continue
        cold = values["first_step_seconds_cold"]
        table.add_row(
            name,
            _text(values["tokens_per_second"], ",.0f"),
            _text(values["mixln_speed_ratio"], ".2f"),
            _text(found["processor_time"][name], ".2f"),
            f"{values['peak_bytes']['median'] / _MEBIBYTE:,.0f}",
            _text(values["mixln_memory_ratio"], ".2f"),
            f"{values['first_step_seconds']['median']:.1f}" + ("" if cold is None else f" ({cold:.1f})"),
            f"{values['busy']['median']:.0%}",
            f"{values['padding']['median']:.1%}",
            f"{values['loss']['median']:.3f}",
        )
    return table


def _peak_table(found: dict[str, Any], contenders: Sequence[str], precision: str) -> Table:
    peak = found["matrix_peak_flops"]
    about = "" if peak is None else f" ({_text(peak, '.3f', scale=1e-12)} Tflop/s)"
    table = Table(title=f"Share of the machine's peak in {precision} matrix multiplication{about}")
    table.add_column("contender")
    table.add_column("counting predicted tokens", justify="right")
    table.add_column("counting token slots", justify="right")
    for name in contenders:
        if values := found[name]:
            table.add_row(name, _text(values["peak_share_predicted"], ".1%"), _text(values["peak_share_slots"], ".1%"))
    return table


@dataclass(frozen=True)
class SchemeReport:
    """What each scheme costs beside `pre`."""

    schemes: tuple[str, ...]

    def summary(self, measurements: Sequence[Measurement]) -> dict[str, Any]:
        """Return the seconds of a step, the ratios scheme / pre within each pair of steps, and the parameters added."""
        found: dict[str, Any] = {}
        for scheme in self.schemes:
            pairs = step_pairs(measurements, scheme)
            found[scheme] = pairs and {
                "step_seconds": asdict(estimate([own for _, own in pairs])),
                "step_time_ratio": asdict(estimate([own / base for base, own in pairs])),
                "processor_time_ratio": asdict(
                    estimate([own / base for base, own in step_pairs(measurements, scheme, "processor_seconds")])
                ),
                "added_parameters": next(
                    one.values["added_parameters"] for one in measurements if one.label == scheme and one.status == "ok"
                ),
            }
        return found

    def tables(self, measurements: Sequence[Measurement]) -> list[Table]:
        """Return one table."""
        table = Table(title="Cost of each scheme, as a multiple of pre")
        for column in ("scheme", "seconds a step", "step time / pre", "processor time / pre", "parameters added"):
            table.add_column(column, justify="right" if len(table.columns) else "left")
        for scheme, values in self.summary(measurements).items():
            if values:
                ratio = values["step_time_ratio"]
                table.caption = f"{ratio['method']}; {ratio['count']} pairs of steps"
                table.add_row(
                    scheme,
                    _text(values["step_seconds"], ".3f"),
                    _text(ratio, ".3f"),
                    _text(values["processor_time_ratio"], ".3f"),
                    f"{values['added_parameters']:,}",
                )
            else:
                table.add_row(scheme, _problem(measurements, scheme))
        return [table]


@dataclass(frozen=True)
class ScalingReport:
    """Step time and memory against layers and batch.

    Attributes:
        layers: label -> number of layers, at one batch.
        rows: label -> rows of a micro-batch, at one depth.
    """

    layers: dict[str, int]
    rows: dict[str, int]

    def summary(self, measurements: Sequence[Measurement]) -> dict[str, Any]:
        """Return the points and the line through them, for both axes."""
        return {
            "layers": self._axis(measurements, self.layers),
            "rows": self._axis(measurements, self.rows),
        }

    @staticmethod
    def _axis(measurements: Sequence[Measurement], points: dict[str, int]) -> dict[str, Any]:
        found = {label: list(speeds(measurements, label).values()) for label in points}
        there = {label: ones for label, ones in found.items() if ones}
        times = [(points[label], median(one.step_seconds for one in ones)) for label, ones in there.items()]
        bytes_ = [(points[label], median(one.peak_bytes for one in ones)) for label, ones in there.items()]
        return {
            "step_seconds": {"points": times, "line": _line(times)},
            "peak_bytes": {"points": bytes_, "line": _line(bytes_)},
        }

    def tables(self, measurements: Sequence[Measurement]) -> list[Table]:
        """Return one table for each axis."""
        found = self.summary(measurements)
        return [_axis_table(name, found[name], measurements) for name in ("layers", "rows")]


def _axis_table(axis: str, found: dict[str, Any], measurements: Sequence[Measurement]) -> Table:
    failures = sorted({f"{one.label}: {one.message}" for one in measurements if one.status != "ok"})
    caption = "line through the medians over rounds; largest residual as a share of the mean point"
    table = Table(title=f"Against the number of {axis}", caption="\n".join([caption, *failures]))
    for column in (axis, "seconds a step", "peak MiB"):
        table.add_column(column, justify="right")
    times, memory = found["step_seconds"], found["peak_bytes"]
    for (value, seconds), (_, peak) in zip(times["points"], memory["points"], strict=True):
        table.add_row(str(value), f"{seconds:.3f}", f"{peak / _MEBIBYTE:,.0f}")
    if times["line"] is not None:
        table.add_section()
        table.add_row(
            "line", _line_text(times["line"], axis, 1, ".4f"), _line_text(memory["line"], axis, 2**-20, ".1f")
        )
        table.add_row("residual", f"{times['line']['residual']:.1%}", f"{memory['line']['residual']:.1%}")
    return table


def _line(points: list[tuple[int, float]]) -> dict[str, float] | None:
    if len(points) < len(Line.__dataclass_fields__):  # two points always lie on a line
        return None
    return asdict(fit_line(points))


def _line_text(line: dict[str, float], axis: str, scale: float, form: str) -> str:
    return f"{line['intercept'] * scale:{form}} + {line['slope'] * scale:{form}} * {axis}"


def _estimate_all(values: dict[int, float]) -> Estimate | None:
    return estimate(list(values.values())) if values else None


def _as_dict(value: Estimate | None) -> dict[str, Any] | None:
    return None if value is None else asdict(value)


def _text(value: dict[str, Any] | None, form: str, scale: float = 1.0) -> str:
    if value is None:
        return "-"
    middle, low, high = (value[name] * scale for name in ("median", "low", "high"))
    return f"{middle:{form}} [{low:{form}} .. {high:{form}}]".replace("[", "\\[")


def _method(found: dict[str, Any], names: Sequence[str]) -> str:
    for name in names:
        for value in (found[name] or {}).values():
            if isinstance(value, dict):
                disturbed = f"; {found['disturbed']} disturbed measurements left out" if found["disturbed"] else ""
                return f"{value['method']} over {value['count']} rounds; ratios are taken within each round{disturbed}"
    return "no measurement yet"


def _problem(measurements: Sequence[Measurement], label: str) -> str:
    messages = [f"{one.status}: {one.message}" for one in measurements if one.label == label and one.status != "ok"]
    disturbed = any(one.label == label for one in measurements)
    unmeasured = "all measurements were disturbed" if disturbed else "not measured yet"
    return (messages[-1] if messages else unmeasured).replace("[", "\\[")
