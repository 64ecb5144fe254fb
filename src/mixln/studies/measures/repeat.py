"""The cost of running a layer twice."""

from mixln.measure.interventions import repeats
from mixln.report.series import ColumnSpec
from mixln.studies.measures.swap import FIGURE
from mixln.studies.measuring import Drops

ENTRY = Drops("repeat", 41, repeats, figures=(FIGURE,), columns=(ColumnSpec("repeat", "repeat", "+.3f"),))
