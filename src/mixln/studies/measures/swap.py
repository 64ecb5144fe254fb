"""The cost of swapping a layer with the next."""

from mixln.measure.interventions import swaps
from mixln.report.series import ColumnSpec, FigureSpec
from mixln.studies.measuring import Drops

FIGURE = FigureSpec(
    "interventions",
    "Swapping and repeating layers",
    "Performance drop when layer l and the next change places, and when layer l runs twice.",
    "Layers that can be swapped or repeated at no cost do work that does not depend on their place.",
    "bars",
    {"swap": "swapped", "repeat": "run twice"},
)

ENTRY = Drops(
    "swap", 40, swaps, axis="first_of_pair", figures=(FIGURE,), columns=(ColumnSpec("swap with next", "swap", "+.3f"),)
)
