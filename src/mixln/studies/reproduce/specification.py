"""What a table or figure of a paper is, as data: the published numbers, the runs, and what would count as agreement.

    title: Perplexity of Mix-LN by the share of Post-LN layers
    paper: Mix-LN
    rows:
      - {name: Pre-LN, settings: {placement: pre}, published: {1B: 18.65}}
      - {name: "0.25", settings: {placement: mix(alpha=0.25)}, published: {1B: 18.18}}
    columns:
      - {name: 1B, settings: {paper: {recipe: 1b}, nano: {recipe: nano, tokens: 2M}}}
    claims:
      - {says: a quarter of Post-LN layers is better than none, lower: ["0.25", Pre-LN]}

A run belongs to a row, a column, a variant, a seed and a learning rate. Its recipe is that of the column at the chosen
scale, with the settings of the row and of the variant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from mixln.checked import Conversion, NonNegativeInt, PositiveFloat
from mixln.errors import InputError
from mixln.placement.words import did_you_mean

Scale = Literal["nano", "small", "paper"]
"""How large the runs are: this machine; one GPU for a day; the published runs."""

SCALES: tuple[Scale, ...] = ("nano", "small", "paper")

_FOLDER = Path(__file__).parent / "specs"


def refuse_repeated(what: str, values: Sequence[Any]) -> None:
    """Raise InputError if a value is given twice."""
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise InputError(f"{what}: {twice[0]!r} is given twice")


@dataclass(frozen=True)
class Row:
    """A row of the table: a scheme, mostly.

    Attributes:
        name: as the table has it.
        settings: fields of the recipe, such as the placement.
        published: its numbers by the names of columns; a null has no number in the paper.
        learning_rates: by scale, instead of those of all rows: some schemes train at small ones alone.
        note: what is to be known of it.
        departs: by column, why a recipe of ours has another number (of tables of hyperparameters).
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    published: dict[str, float | None] = field(default_factory=dict)
    learning_rates: dict[str, list[PositiveFloat]] = field(default_factory=dict)
    note: str = ""
    departs: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise InputError if a learning rate is given twice."""
        for scale, rates in self.learning_rates.items():
            refuse_repeated(f"the row {self.name!r}: learning_rates.{scale}", rates)


@dataclass(frozen=True)
class Column:
    """A column of the table: a size, mostly.

    Attributes:
        name: as the table has it.
        settings: by scale, the recipe (`recipe`) and the fields in which it differs. A scale without any has no runs.
        note: what is to be known of it.
    """

    name: str
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Variant:
    """A condition under which all cells are run, and the rows compared: an embedding initialisation, mostly.

    Attributes:
        name: for people.
        settings: fields of the recipe.
        scales: at which it is run.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    scales: list[Scale] = field(default_factory=lambda: list(SCALES))


@dataclass(frozen=True)
class Conditions:
    """Seeds and learning rates at a scale.

    Attributes:
        seeds: one run of each cell for each.
        learning_rates: peaks; each cell is judged at its own best, which is found with the first seed. None: the
            recipe's.
    """

    seeds: list[NonNegativeInt]
    learning_rates: list[PositiveFloat] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raise InputError if there is no seed, or one run would count as two."""
        if not self.seeds:
            raise InputError("no seeds: give at least one, and three for an interval")
        for what, values in (("seeds", self.seeds), ("learning_rates", self.learning_rates)):
            refuse_repeated(what, values)


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper, and what would count as agreement.

    Exactly one of `lower` and `does_not_learn` says what is tested.

    Attributes:
        says: the sentence.
        lower: rows, each of which has a lower `quantity` than the next one.
        does_not_learn: rows that learn no order of tokens (or no classes) at the learning rates of the paper.
        quantity: that is compared; empty: the table's.
        columns: in which; empty: in all.
    """

    says: str
    lower: list[str] = field(default_factory=list)
    does_not_learn: list[str] = field(default_factory=list)
    quantity: str = ""
    columns: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if bool(self.lower) == bool(self.does_not_learn):
            raise InputError(f"the claim {self.says!r} must have one of `lower` and `does_not_learn`")
        if len(self.lower) == 1:
            raise InputError(f"the claim {self.says!r}: `lower` must name at least two rows")
        refuse_repeated(f"the claim {self.says!r}: lower", self.lower)


@dataclass(frozen=True)
class Specification:
    """A table or figure of a paper.

    Attributes:
        title: what it shows.
        paper: its short name.
        editions: what it is called in each edition, as `{"arXiv v1": "table 5"}`.
        link: of the paper.
        caption: what the paper says of it.
        quantity: what its cells are; see `mixln.studies.reproduce.quantities`.
        rows: of the table.
        columns: of the table.
        conditions: seeds and learning rates by scale.
        baseline: the row that differences are taken to; empty: there are none.
        variants: under which all is run; none: one without a name.
        claims: of the paper.
        open_points: what the paper leaves open, or says in two ways.
        source: where the numbers are from.
        study: what the cells are: training runs, or fields of recipes.
        name: of the specification, `mix-ln/alpha`.
    """

    title: str
    paper: str
    editions: dict[str, str]
    link: str
    caption: str
    quantity: str
    rows: list[Row]
    columns: list[Column]
    conditions: dict[str, Conditions]
    baseline: str = ""
    variants: list[Variant] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    open_points: list[str] = field(default_factory=list)
    source: str = ""
    study: Literal["training", "recipes"] = "training"
    name: str = ""

    def __post_init__(self) -> None:
        """Raise InputError if something names a row, a column or a scale that is not there."""
        rows, columns = [row.name for row in self.rows], [column.name for column in self.columns]
        for what, names in (("row", rows), ("column", columns), ("variant", [one.name for one in self.variants])):
            if len(set(names)) < len(names):
                raise InputError(f"{self.name}: two {what}s have the same name")
            if not names and what != "variant":
                raise InputError(f"{self.name} has no {what}s")
        named = [(self.baseline, rows)] if self.baseline else []
        named += [(name, columns) for row in self.rows for name in row.published]
        named += [(name, rows) for claim in self.claims for name in (*claim.lower, *claim.does_not_learn)]
        named += [(name, columns) for claim in self.claims for name in claim.columns]
        scales = [*self.conditions, *(scale for column in self.columns for scale in column.settings)]
        named += [
            (scale, list(SCALES)) for scale in (*scales, *(one for row in self.rows for one in row.learning_rates))
        ]
        for name, known in named:
            if name not in known:
                raise InputError(f"{self.name} names {name!r}, which is not among {', '.join(known)}")

    @property
    def editions_in_words(self) -> str:
        """Where it stands in the editions of the paper."""
        return "; ".join(f"{number} ({edition})" for edition, number in self.editions.items())

    def row(self, name: str) -> Row:
        """Return a row by its name."""
        return next(row for row in self.rows if row.name == name)

    def variants_at(self, scale: Scale) -> list[Variant]:
        """Return the variants that are run at a scale; one without a name, if there are none."""
        return [one for one in self.variants if scale in one.scales] or [Variant("")]

    def columns_at(self, scale: Scale) -> list[Column]:
        """Return the columns that have runs at a scale."""
        return [column for column in self.columns if scale in column.settings]


@cache
def list_specifications() -> tuple[str, ...]:
    """Return the names of all tables and figures, papers in the order of the alphabet."""
    return tuple(sorted(path.relative_to(_FOLDER).with_suffix("").as_posix() for path in _FOLDER.rglob("*.yaml")))


def load_specification(name: str) -> Specification:
    """Return a table or figure by its name, or the one that a YAML file of one's own describes.

    Raises:
        InputError: there is none of that name, or the file describes none.
    """
    known = list_specifications()
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return read_specification(path, path.stem)
    if name not in known:
        raise InputError(
            f"there is no table or figure {name!r}.{did_you_mean(name, known, most=3)} "
            "`mixln reproduce --list` shows all"
        )
    return read_specification(_FOLDER / f"{name}.yaml", name)


def read_specification(path: Path, name: str) -> Specification:
    """Return the table or figure that a YAML file describes.

    Raises:
        InputError: the file cannot be read, or describes none.
    """
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no fields with values")
    try:
        return Conversion(is_json=True, is_written=True).convert(Specification, {**found, "name": name}, "")
    except InputError as error:
        raise InputError(f"{path}: {str(error).strip()}") from error
