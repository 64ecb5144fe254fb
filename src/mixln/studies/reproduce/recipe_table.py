"""A table of hyperparameters: the recipes that ship, held against what the paper prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from mixln.errors import InputError
from mixln.report.reproduction import AGREES, DISAGREES, ReproducedCell, ReproducedClaim
from mixln.report.series import Estimate
from mixln.studies.reproduce.runs import Run
from mixln.studies.reproduce.specification import Scale, Specification
from mixln.tasks.recipes import flat_fields, load_recipe

DEPARTS = "departs"
"""A field that differs from the paper's, where the specification says why."""


class RecipeTable:
    """A table of hyperparameters. A row names a recipe, a column one of its fields; there are no runs.

    Args:
        specification: of the table.
        scale: `paper` alone has recipes that could equal the paper's.
        folder: of all tables; nothing is written.
        **options: of tables with runs; they play no part.

    Raises:
        InputError: it is asked for at another scale, or names no field of a recipe.
    """

    def __init__(self, specification: Specification, scale: Scale, folder: Path, **options: Any) -> None:
        del folder, options
        if scale != "paper":
            raise InputError(f"{specification.name} is about the published recipes: add `scale=paper`")
        for row in specification.rows:
            if not isinstance(row.settings.get("recipe"), str):
                raise InputError(f"{specification.name}: the row {row.name!r} must name a recipe in its settings")
        for column in specification.columns:
            if not isinstance(column.settings.get("paper", {}).get("field"), str):
                raise InputError(
                    f"{specification.name}: the column {column.name!r} must name a field at the scale paper"
                )
        self.specification = specification
        self.scale: Scale = scale

    def __enter__(self) -> RecipeTable:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def make(self, *_: object) -> None:
        """Do nothing: there are no runs."""

    def all_runs(self) -> list[Run]:
        """Return none."""
        return []

    def longest(self) -> int:
        """Return the steps of the longest run, of which there is none."""
        return 1

    def finished(self) -> int:
        """Return 0: there are no runs."""
        return 0

    def conditions(self) -> dict[str, str]:
        """Return which recipe each row is."""
        return {row.name: f"the recipe {row.settings['recipe']}" for row in self.specification.rows}

    def found_cells(self) -> list[ReproducedCell]:
        """Return every field of every recipe beside the paper's."""
        found: list[ReproducedCell] = []
        for row in self.specification.rows:
            values = flat_fields(load_recipe(row.settings["recipe"]))
            for column in self.specification.columns:
                value, published = (
                    self._value(values, column.settings["paper"]["field"]),
                    row.published.get(column.name),
                )
                why = row.departs.get(column.name, "")
                verdict = "" if published is None else AGREES if value == published else DEPARTS if why else DISAGREES
                found.append(
                    ReproducedCell(
                        row=row.name,
                        column=column.name,
                        variant="",
                        published=published,
                        measured=Estimate(value),
                        spread=None,
                        seeds=0,
                        learning_rate=None,
                        has_learned=True,
                        published_difference=None,
                        difference=None,
                        verdict=verdict,
                        why=why,
                        folders=[],
                    )
                )
        return found

    def found_claims(self) -> list[ReproducedClaim]:
        """Return one claim for each row: that the recipe equals the table."""
        cells = self.found_cells()
        claims: list[ReproducedClaim] = []
        for row in self.specification.rows:
            own = [cell for cell in cells if cell.row == row.name]
            wrong = [cell for cell in own if cell.verdict == DISAGREES]
            why = [f"{cell.column}: {cell.why}" for cell in own if cell.verdict == DEPARTS]
            why += [f"{cell.column} is not {cell.published:g}" for cell in wrong if cell.published is not None]
            says = f"The recipe of {row.name} is that of the table" + (", but where it says why not" if why else "")
            claims.append(ReproducedClaim(says, "", DISAGREES if wrong else AGREES, "; ".join(why), "", None))
        return claims

    def _value(self, values: dict[str, Any], field: str) -> float:
        if field not in values:
            self._refuse(field)
        value = values[field]
        if isinstance(value, str):  # the share of Post-LN layers, which is in the placement
            from mixln.placement import Placement

            options = Placement.parse(value).scheme.options
            value = options.get("alpha", 0.0)
        return float(value)

    def _refuse(self, field: str) -> NoReturn:
        raise InputError(f"{self.specification.name}: a recipe has no field {field!r}")
