"""What a diagnosis found, as plain data: no models, no tensors. It is written to `report.json` (docs/diagnose.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

DIAGNOSIS_SCHEMA_VERSION = 2

REPORT_FILE = "report.json"

Axis = Literal["layer", "state", "first_of_pair", "first_of_run", "model"]
"""What a series has an entry for: each layer 1 .. L; each state x_1 .. x_(L+1); each pair of neighbours by its first
layer; each run of layers by its first layer; the whole model, one entry."""


@dataclass(frozen=True)
class Series:
    """One measure, a number for each layer or the like, with 95 % confidence intervals over documents.

    Attributes:
        name: of the measure, as in the list of measures in the documentation.
        axis: what there is an entry for; entries begin at 1.
        unit: of the numbers.
        values: the estimates.
        low: lower ends of the intervals; None where there is none (one document alone).
        high: upper ends.
    """

    name: str
    axis: Axis
    unit: str
    values: list[float]
    low: list[float | None]
    high: list[float | None]


@dataclass(frozen=True)
class NormScaleResult:
    """One norm of one block: see `mixln.depth.norm_scales.NormScales`."""

    layer: int
    name: str
    is_on_stream: bool
    sigma: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class AttributionResult:
    """Direct logit attribution of the next token against the likeliest other one: see `mixln.normfree.attribution`.

    Attributes:
        tokens: that it was taken of.
        gap: sum |c - DE| / sum |DE| over components and tokens, with the ends of its interval over documents.
        gap_low: None where there is none.
        gap_high: None where there is none.
        sum_error: the largest |sum of contributions + biases - logit difference|, in logits.
        contribution: mean |c| in logits: of the embedding, then of layers 1 .. L, attention and feed-forward together.
        direct_effect: mean |DE|, likewise.
    """

    tokens: int
    gap: float
    gap_low: float | None
    gap_high: float | None
    sum_error: float
    contribution: list[float]
    direct_effect: list[float]


@dataclass(frozen=True)
class PatchingResult:
    """Attribution patching against activation patching on induction prompts: see `mixln.normfree.patching`.

    Attributes:
        correlation: Pearson's r of each prompt.
        slope: of each prompt.
        error: sum |attribution - activation| / sum |activation| of each prompt.
        activation: effects in logits, of all prompts, sublayers and positions one behind the other.
        attribution: likewise.
    """

    correlation: list[float]
    slope: list[float]
    error: list[float]
    activation: list[float]
    attribution: list[float]


@dataclass(frozen=True)
class EntropyNeuronsResult:
    """Mean-ablated entropy neurons of the last feed-forward: see `mixln.normfree.entropy_neurons`.

    Attributes:
        neurons: their indices.
        weight_norm: of each.
        logit_variance: of each.
        entropy: of the whole model's output distribution, nats per token.
        entropy_change: of ablating each, and last all together; nats per token.
        entropy_change_low: lower ends of its intervals over documents; None where there is none.
        entropy_change_high: upper ends.
        entropy_change_held: the change with the final norm's scale held.
        loss_change: of each, and last of all together; nats per token.
        loss_change_held: with the scale held.
    """

    neurons: list[int]
    weight_norm: list[float]
    logit_variance: list[float]
    entropy: float
    entropy_change: list[float]
    entropy_change_low: list[float | None]
    entropy_change_high: list[float | None]
    entropy_change_held: list[float]
    loss_change: list[float]
    loss_change_held: list[float]


@dataclass(frozen=True)
class InterpretabilityResult:
    """What norms do to the tools of interpretability; None where it could not be measured (the notes say why)."""

    attribution: AttributionResult | None = None
    patching: PatchingResult | None = None
    entropy_neurons: EntropyNeuronsResult | None = None


@dataclass(frozen=True)
class ModelDiagnosis:
    """What was found of one model.

    Attributes:
        model: name or path, as given.
        kind: class of the model.
        layers_name: where its blocks are in it, such as `model.layers`.
        block_kind: class of a block.
        num_layers: L.
        num_parameters: of the whole model.
        layer_parameters: of each block.
        tokens: counted tokens of the measures of hidden states.
        performance_tokens: counted tokens (for a pooled embedding: rows) of the performance drops.
        documents: that the tokens are of.
        performance: what performance drops are drops of, with its unit.
        performance_of_whole: of the whole model; None if nothing was measured.
        performance_of_whole_low: lower end of its interval; None where there is none.
        performance_of_whole_high: upper end.
        series: by the name of the measure.
        angular_distance: row n-1, entry l-1: d(l, n) in [0, 1]; row n-1 has L - n + 1 entries.
        angular_distance_low: lower ends of its intervals; None where there is none.
        angular_distance_high: upper ends.
        norm_scales: every norm of the width of the stream, block by block.
        log10_gradient_factor: log10 of the product of 1 / sigma over the norms on the stream; 0 in Pre-LN.
        interpretability: what norms do to attribution, patching and entropy neurons; None if it was not asked for.
        notes: what could not be measured, and why.
        seconds: that the diagnosis took.
    """

    model: str
    kind: str
    layers_name: str
    block_kind: str
    num_layers: int
    num_parameters: int
    layer_parameters: list[int]
    tokens: int
    performance_tokens: int
    documents: int
    performance: str
    performance_of_whole: float | None = None
    performance_of_whole_low: float | None = None
    performance_of_whole_high: float | None = None
    series: dict[str, Series] = field(default_factory=dict)
    angular_distance: list[list[float]] = field(default_factory=list)
    angular_distance_low: list[list[float | None]] = field(default_factory=list)
    angular_distance_high: list[list[float | None]] = field(default_factory=list)
    norm_scales: list[NormScaleResult] = field(default_factory=list)
    log10_gradient_factor: float | None = None
    interpretability: InterpretabilityResult | None = None
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class DepthReport:
    """Diagnoses side by side, on the same text.

    Attributes:
        models: one for each.
        text: where the text is from.
        machine: that it was measured on.
        command: the command line; empty from Python.
        version: of mixln.
    """

    models: list[ModelDiagnosis]
    text: str
    machine: str
    command: str
    version: str

    def save(self, folder: str | Path) -> Path:
        """Write `report.json`, `figures/` and `report.html` into a folder, and return the last one's path.

        Raises:
            InputError: a file cannot be written.
        """
        # matplotlib takes a second to import
        from mixln.report.diagnosis_page import write_diagnosis

        return write_diagnosis(self, Path(folder))
