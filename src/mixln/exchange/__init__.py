"""Models that come from other code, or go where this library is not: import, exact export, folders with their code."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mixln.exchange.convert import save_converted as save_converted
    from mixln.exchange.export import save_stock as save_stock
    from mixln.exchange.export import stock_model as stock_model
    from mixln.exchange.self_contained import save_self_contained as save_self_contained
else:
    from mixln.lazy import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
