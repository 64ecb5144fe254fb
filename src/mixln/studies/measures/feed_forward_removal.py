"""What removing the feed-forward of each layer costs."""

from mixln.measure.interventions import silences
from mixln.report.series import ColumnSpec
from mixln.studies.measures.attention_removal import FIGURE
from mixln.studies.measuring import Drops

ENTRY = Drops(
    "feed_forward_removal",
    31,
    silences("feed_forward"),
    needs_sublayers=True,
    figures=(FIGURE,),
    columns=(ColumnSpec("feed-forward removed", "feed_forward_removal", "+.3f", "layers"),),
)
