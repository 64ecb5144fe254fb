"""The results as Markdown, for docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.analysis import Estimate
from benchmarks.gpu.results import Results
from benchmarks.gpu.summary import PredictionError, Trained, prediction_errors, trained
from benchmarks.settings import SEQUENCE_LENGTH, SIZES

_GIB = 2**30


def to_markdown(results: Results) -> str:
    """Return a section with a table for each part that has been measured."""
    return "\n".join(_lines(results)) + "\n"


def _lines(results: Results) -> Iterator[str]:
    yield from _head(results)
    errors: list[PredictionError] = []
    for size in _sizes(results):
        alone = trained(results, size, processes=False)
        together = trained(results, size, processes=True)
        if alone:
            yield from _side_by_side(size, alone)
        if together:
            yield from _several(size, alone, together)
        errors += prediction_errors(results, [*alone, *together])
    if errors:
        yield from _errors(errors)
    if results.resume:
        yield from _resume(results)
    if "forward_seconds" in results.diagnosis:
        yield from _diagnosis(results)
    if results.left_out:
        yield from ["### Not measured", "", *(f"- {line}" for line in results.left_out), ""]


def _sizes(results: Results) -> list[str]:
    found = dict.fromkeys(one.settings["size"] for one in results.measurements)
    return sorted(found, key=lambda size: SIZES.index(size) if size in SIZES else len(SIZES))


def _head(results: Results) -> Iterator[str]:
    device, versions = results.device, results.machine.get("versions", {})
    yield f"## {device.get('name', 'No device yet')}"
    yield ""
    if results.toy:
        yield "**Toy models: these numbers show that the benchmark runs, and nothing else.**"
        yield ""
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    count = f"{device['count']} x {device['name']}, " if device.get("count", 1) > 1 else ""
    yield f"{count}{results.machine.get('cores')} processor cores; {named}; commit {results.machine.get('commit')}."
    yield ""
    yield f"```bash\n{results.command}\n```"
    yield ""
    if results.peak:
        shape, peak = max(results.peak.items(), key=lambda item: item[1])
        yield f"The fastest matrix multiplication before the start reached {peak / 1e12:,.3g} Tflop/s ({shape})."
        yield ""


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _side_by_side(size: str, found: Sequence[Trained]) -> Iterator[str]:
    first = found[0]
    settings, method = first.settings, first.tokens_per_second
    yield f"### {size}: beside other trainers"
    yield ""
    yield (
        f"{settings.rows_per_step} rows of {SEQUENCE_LENGTH} tokens a step, in micro-batches of "
        f"{settings.micro_batch_size}; {settings.precision}; {'' if settings.compile else 'mixln not '}compiled. "
        f"{method.count} rounds in turns: {method.method}. Ratios are taken within a round, and so is the share of the "
        "peak, over the fastest matrix multiplication of that round."
    )
    yield ""
    base = _name(size, first.label)
    columns = ["contender", "predicted tokens/s", f"`{base}` is x times as fast", "share of the peak", "GiB of tensors"]
    columns += ["GiB reserved", "first step, s", "loss"]
    yield from _table(columns, [_trained_row(size, one) for one in found])


def _trained_row(size: str, one: Trained) -> list[str]:
    return [
        f"`{_name(size, one.label)}`",
        _interval(one.tokens_per_second, ",.0f"),
        _interval(one.speed_ratio, ".3f"),
        _interval(one.peak_share, ".1%"),
        f"{one.peak_bytes / _GIB:.2f}",
        "" if one.reserved_bytes is None else f"{one.reserved_bytes / _GIB:.2f}",
        f"{one.first_step_seconds:.0f}",
        "" if one.loss is None else f"{one.loss:.3f}",
    ]


def _several(size: str, alone: Sequence[Trained], found: Sequence[Trained]) -> Iterator[str]:
    yield f"### {size}: several processes"
    yield ""
    yield "Each process has the rows of one that is alone. Efficiency: tokens by second and process, over its."
    yield ""
    rows: list[list[str]] = []
    for one in found:
        same = [own for own in alone if own.settings.placement == one.settings.placement]
        efficiency = ""
        if same:
            share = one.tokens_per_second.median / one.settings.processes / same[0].tokens_per_second.median
            efficiency = f"{share:.1%}"
        rows.append(
            [
                f"`{_name(size, one.label)}`",
                str(one.settings.processes),
                _interval(one.tokens_per_second, ",.0f"),
                efficiency,
                f"{one.peak_bytes / _GIB:.2f}",
                "" if one.loss is None else f"{one.loss:.3f}",
            ]
        )
    yield from _table(
        ["strategy", "processes", "predicted tokens/s", "efficiency", "GiB of tensors, each", "loss"], rows
    )


def _errors(errors: Sequence[PredictionError]) -> Iterator[str]:
    yield "### How far `mixln estimate` is off"
    yield ""
    yield "The last column is the utilisation with which the time would be exact."
    yield ""
    columns = ["run", "s a step, predicted", "measured", "error", "GiB, predicted", "measured", "error", "utilisation"]
    rows = [
        [
            f"`{one.label}`",
            f"{one.predicted.step_seconds:.3f}",
            f"{one.step_seconds:.3f}",
            f"{one.time_error:+.0%}",
            f"{one.predicted.peak_bytes / _GIB:.2f}",
            f"{one.peak_bytes / _GIB:.2f}",
            f"{one.memory_error:+.0%}",
            f"{one.predicted.utilization:.2f}, exact {one.exact_utilization:.2f}",
        ]
        for one in errors
    ]
    yield from _table(columns, rows)


def _resume(results: Results) -> Iterator[str]:
    found = results.resume
    if "identical" not in found:
        return
    yield "### Kill and resume"
    yield ""
    how = (
        f"{found['size']}, {found['steps']} steps of {found['rows']} rows, SIGKILL after step {found['killed_after']}, "
        f"taken up at step {found['resumed']['begun_at']}: "
    )
    if found["identical"]:
        yield f"{how}weights and losses are those of the run that was not killed, to the last bit."
    else:
        yield f"{how}**not the same bits**; weights differ by {found['largest_difference']:.3g} at most."
        if "repeats_itself" in found:
            same = "are the same" if found["repeats_itself"] else "are not the same bits either"
            yield f"Two runs that nobody killed {same}."
    yield ""


def _diagnosis(results: Results) -> Iterator[str]:
    found = results.diagnosis
    yield f"### `diagnose` of {found['size']}"
    yield ""
    ratio = f"{found['seconds'] / found['forward_seconds']:.1f}" if "seconds" in found else ""
    yield from _table(
        ["parameters", "layers", "tokens", "forward, s", "diagnosis, s", "as a multiple", "GiB: forward", "diagnosis"],
        [
            [
                f"{found['parameters']:,}",
                str(found["layers"]),
                f"{found['tokens']:,}",
                f"{found['forward_seconds']:.2f}",
                f"{found['seconds']:.1f}" if "seconds" in found else f"ended at {found.get('reached', 'the start')}",
                ratio,
                f"{found['forward_peak_bytes'] / _GIB:.2f}",
                f"{found['peak_bytes'] / _GIB:.2f}" if "peak_bytes" in found else "",
            ]
        ],
    )


def _name(size: str, label: str) -> str:
    return label.removeprefix(f"{size} ")


def _interval(value: Estimate | None, form: str) -> str:
    if value is None:
        return ""
    return f"{value.median:{form}} [{value.low:{form}} .. {value.high:{form}}]"
