"""An estimate as tables on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from mixln.estimate.parameters import ParameterCount
from mixln.estimate.result import Estimate, PlanEstimate

_GIB = 2**30


def print_estimate(estimate: Estimate, console: Console) -> None:
    """Print everything that an estimate holds."""
    console.print(_model_table(estimate))
    console.print(_memory_table(estimate))
    console.print(_time_table(estimate))
    for line in _verdict(estimate):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print("Assumptions:", highlight=False)
    for line in estimate.assumptions:
        console.print(f"- {line}", soft_wrap=True, highlight=False, markup=False)


def _model_table(estimate: Estimate) -> Table:
    parameters, operations = estimate.parameters, estimate.operations
    table = _table("Model", "", "")
    table.add_row("parameters", f"{parameters.total:,}")
    table.add_row("  input embedding", f"{parameters.embedding:,}")
    table.add_row("  head", f"{parameters.head:,}" if parameters.head else "the embedding's")
    table.add_row(f"  {len(parameters.blocks)} blocks", _blocks(parameters))
    table.add_row("  other norms", f"{parameters.other:,}")
    table.add_row("MFLOP per token, forward and backward", f"{operations.model / 1e6:,.1f}")
    table.add_row("  6 * parameters but the input embedding", f"{operations.matrices / 1e6:,.1f}")
    table.add_row("  attention, 12 * layers * width * T / 2 (causal)", f"{operations.attention / 1e6:,.1f}")
    if operations.masked_attention:
        table.add_row("beside it: attention that is masked out", f"{operations.masked_attention / 1e6:,.1f}")
    if operations.recomputation:
        table.add_row("beside it: activation checkpointing", f"{operations.recomputation / 1e6:,.1f}")
    table.add_row("token slots per step, steps", f"{estimate.tokens_per_step:,}, {estimate.steps:,}")
    return table


def _blocks(parameters: ParameterCount) -> str:
    sizes = sorted(set(parameters.blocks))
    each = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    return f"{parameters.in_blocks:,} ({each} each)"


def _memory_table(estimate: Estimate) -> Table:
    title = f"Memory per device, GiB (usable: {estimate.usable_bytes / _GIB:.1f})"
    names = ("weights", "gradients", "Adam", "copies", "activations", "loss head", "libraries", "total")
    table = _table(title, "plan", "rows", *names, "fits")
    for plan in estimate.plans:
        table.add_row(*_memory_row(plan), style="bold" if plan.chosen else None)
    table.caption = "* this recipe's; rows: sequences in a micro-batch on one device"
    return table


def _memory_row(plan: PlanEstimate) -> list[str]:
    use = plan.memory
    parts = (
        use.weights,
        use.gradients + use.backward_extra,
        use.optimizer,
        use.copies,
        use.activations,
        use.loss_head,
        use.libraries,
    )
    numbers = [f"{part / _GIB:.2f}" for part in (*parts, use.total)]
    return [plan.label + " *" * plan.chosen, str(plan.rows), *numbers, "yes" if plan.fits else "no"]


def _time_table(estimate: Estimate) -> Table:
    time, device = estimate.time, estimate.device
    table = _table(f"Time on {estimate.count} x {device.description}", "", "")
    table.add_row("tokens per second", f"{time.tokens_per_second:,.0f}")
    table.add_row("seconds per step", f"{time.step_seconds:.3g}")
    table.add_row("  matrices at the peak", f"{time.matrix_seconds:.3g}")
    table.add_row("  memory traffic at the bandwidth", f"{time.traffic_seconds:.3g}")
    if estimate.count > 1:
        table.add_row("  communication at the interconnect's", f"{time.communication_seconds:.3g}")
    table.add_row("model-FLOPs utilisation", f"{time.model_flops_utilization:.0%}")
    table.add_row("wall-clock", _duration(time.hours))
    table.add_row("device-hours", f"{time.device_hours:,.1f}")
    table.add_row("cost", "give a price, per device and hour" if time.cost is None else f"{time.cost:,.2f}")
    return table


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


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left", show_header=any(columns))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table
