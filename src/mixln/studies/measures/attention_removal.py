"""What removing the attention of each layer costs."""

from mixln.measure.interventions import silences
from mixln.report.series import ColumnSpec, FigureSpec
from mixln.studies.measuring import Drops

FIGURE = FigureSpec(
    "sublayer_removal",
    "Harm done by removing attention or feed-forward alone",
    "The output of one sublayer of one layer is replaced by zeros; all else stays.",
    "A layer whose attention bar is near zero and whose feed-forward bar is not works on single positions alone.",
    "bars",
    {"attention_removal": "attention", "feed_forward_removal": "feed-forward"},
)

ENTRY = Drops(
    "attention_removal",
    30,
    silences("attention"),
    needs_sublayers=True,
    figures=(FIGURE,),
    columns=(ColumnSpec("attention removed", "attention_removal", "+.3f", "layers"),),
)
