"""One self-contained HTML page per evaluation: readable offline, all text escaped."""

from featpipe.reports.mistakes import Mistake
from featpipe.reports.page import write_report

__all__ = ["Mistake", "write_report"]
