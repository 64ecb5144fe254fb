"""How far each layer is from the identity map."""

from mixln.measure.jacobian import JacobianDistance
from mixln.report.series import ColumnSpec, FigureSpec
from mixln.studies.measuring import Found, Observed, series_of


class _Jacobian(Observed):
    name = "jacobian"
    rank = 60
    measure = JacobianDistance
    takes_many_passes = True
    figures = (
        FigureSpec(
            "jacobian_distance",
            "Distance of each layer from the identity",
            "|| J - I || / || I || (Frobenius), J the Jacobian of a layer's output by its input (Curse of Depth, "
            "section 2).",
            "0: the layer is the identity map for small changes of its input; 1: as far from it as the zero map is.",
            "bars",
            {"jacobian_distance": ""},
        ),
    )
    columns = (ColumnSpec("|J - I| / |I|", "jacobian_distance"),)

    def read(self, measure: JacobianDistance) -> Found:
        return Found([series_of("jacobian_distance", "layer", "|J - I| / |I|", measure.distance())])


ENTRY = _Jacobian()
