"""Models that come from other code, or go where this library is not: import, exact export, folders with their code."""

from mixln.exchange.convert import save_converted
from mixln.exchange.export import StockExport, save_stock, stock_model

__all__ = ["StockExport", "save_converted", "save_stock", "stock_model"]
