"""How much of the stream each sublayer adds."""

from mixln.measure.sublayers import SublayerShares
from mixln.report.series import ColumnSpec, FigureSpec
from mixln.studies.measuring import Found, Given, Observed, series_of


class _SublayerShares(Observed):
    name = "sublayer_shares"
    rank = 80
    measure = SublayerShares
    needs_sublayers = True
    figures = (
        FigureSpec(
            "shares",
            "What each sublayer adds",
            "|| F || / || x_l ||, F the output of attention or feed-forward, x_l the input of the layer; averaged over "
            "positions.",
            "Low values: the sublayer adds little to the stream.",
            "lines",
            {"attention_share": "attention", "feed_forward_share": "feed-forward"},
            y="Share of the sublayer's output",
        ),
    )
    columns = (
        ColumnSpec("attention share", "attention_share"),
        ColumnSpec("feed-forward share", "feed_forward_share"),
    )

    def build(self, given: Given) -> SublayerShares:
        return SublayerShares(given.execution.sublayers)

    def read(self, measure: SublayerShares) -> Found:
        return Found(
            [
                series_of("attention_share", "layer", "|F| / |x|", measure.share("attention")),
                series_of("feed_forward_share", "layer", "|F| / |x|", measure.share("feed_forward")),
            ]
        )


ENTRY = _SublayerShares()
