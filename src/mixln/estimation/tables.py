"""An estimate as tables on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table

from mixln.estimation.result import Estimate
from mixln.result import Sentence

_GIB = 2**30


def estimate_parts(estimate: Estimate) -> Iterator[RenderableType]:
    """Yield everything that an estimate holds: tables, then lines."""
    yield from (_model_table(estimate), _memory_table(estimate), _time_table(estimate))
    yield from map(Sentence, (*_verdict(estimate), "Assumptions:", *(f"- {one}" for one in estimate.assumptions)))


def _model_table(estimate: Estimate) -> Table:
    parameters, operations, terms = estimate.parameters, estimate.operations, estimate.terms
    sizes = sorted(set(parameters.blocks))
    each = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    rows = {
        "parameters": f"{parameters.total:,}",
        f"  {terms.embedding}": f"{parameters.embedding:,}",
        "  head": f"{parameters.head:,}" if parameters.head else "the embedding's",
        f"  {len(parameters.blocks)} blocks": f"{parameters.in_blocks:,} ({each} each)",
        f"  {terms.other}": f"{parameters.other:,}",
        f"MFLOP per {terms.one}, forward and backward": f"{operations.model / 1e6:,.1f}",
        f"  {terms.matrices}": f"{operations.matrices / 1e6:,.1f}",
        f"  {terms.attention}": f"{operations.attention / 1e6:,.1f}",
    }
    if operations.masked_attention:
        rows["beside it: attention that is masked out"] = f"{operations.masked_attention / 1e6:,.1f}"
    if operations.recomputation:
        rows["beside it: activation checkpointing"] = f"{operations.recomputation / 1e6:,.1f}"
    rows[f"{terms.counted} per step, steps"] = f"{estimate.tokens_per_step:,}, {estimate.steps:,}"
    return _table("Model", rows)


def _memory_table(estimate: Estimate) -> Table:
    """A column for each plan: there are more parts of the memory than 80 characters have room for."""
    plans = estimate.plans
    names = [plan.label.removesuffix(" + activation checkpointing") + " *" * plan.chosen for plan in plans]
    again = ["yes" if plan.plan.activation_checkpointing else "no" for plan in plans]
    rows = {"activation checkpointing": again, "rows": [str(plan.rows) for plan in plans]}
    uses = [plan.memory for plan in plans]
    parts = {
        "weights": [use.weights for use in uses],
        "gradients": [use.gradients + use.backward_extra for use in uses],
        "Adam": [use.optimizer for use in uses],
        "copies": [use.copies for use in uses],
        "activations": [use.activations for use in uses],
        "loss head": [use.loss_head for use in uses],
        "libraries": [use.libraries for use in uses],
        "total": [use.total for use in uses],
    }
    rows |= {name: [f"{size / _GIB:.2f}" for size in sizes] for name, sizes in parts.items()}
    rows["fits"] = ["yes" if plan.fits else "no" for plan in plans]
    table = _table(f"Memory per device, GiB (usable: {estimate.usable_bytes / _GIB:.1f})", rows, names)
    for column, plan in zip(table.columns[1:], plans, strict=True):
        column.style = "bold" if plan.chosen else ""
    table.caption = f"* this recipe's; rows: {estimate.terms.rows} in a micro-batch on one device"
    return table


def _time_table(estimate: Estimate) -> Table:
    time, device = estimate.time, estimate.device
    rows = {
        f"{estimate.terms.unit} per second": f"{time.tokens_per_second:,.0f}",
        "seconds per step": f"{time.step_seconds:.3g}",
        "  matrices at the peak": f"{time.matrix_seconds:.3g}",
        "  memory traffic at the bandwidth": f"{time.traffic_seconds:.3g}",
    }
    if estimate.count > 1:
        rows["  communication at the interconnect's"] = f"{time.communication_seconds:.3g}"
    rows |= {
        "model-FLOPs utilisation": f"{time.model_flops_utilization:.0%}",
        "wall-clock": _duration(time.hours),
        "device-hours": f"{time.device_hours:,.1f}",
    }
    if time.cost is None:
        rows["cost"] = "give a price of one device for one hour"
    else:
        price = time.cost / time.device_hours
        rows["cost, in the currency of the price"] = f"{time.cost:,.2f}, at {price:g} per device-hour"
    return _table(f"Time on {estimate.count} x {device.description}", rows)


def _duration(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"


def _verdict(estimate: Estimate) -> list[str]:
    chosen = estimate.chosen
    if chosen.fits:
        return []
    need, there = chosen.memory.total / _GIB, estimate.usable_bytes / _GIB
    what = f"Does not fit: {chosen.label} needs {need:.1f} GiB of {there:.1f} on each {estimate.device.name}."
    if not estimate.advice:
        return [f"{what} No change of rows, checkpointing or number of devices helps: choose a larger device"]
    return [what + " Any of these makes it fit:", *(f"- {line}" for line in estimate.advice)]


def _table(title: str, rows: Mapping[str, str | Sequence[str]], columns: Sequence[str] = ()) -> Table:
    """A table with a row for each label; without names of columns there is one."""
    table = Table(title=title, title_justify="left", caption_justify="left", box=SIMPLE_HEAD, show_header=bool(columns))
    table.pad_edge, table.collapse_padding = False, True
    table.add_column()
    for column in columns or [""]:
        table.add_column(column, justify="right")
    for label, cells in rows.items():
        table.add_row(label, *([cells] if isinstance(cells, str) else cells))
    return table
