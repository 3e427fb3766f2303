"""One self-contained HTML page per evaluation: readable offline, everything escaped."""

from featpipe.report.mistakes import Mistake
from featpipe.report.page import write_report

__all__ = ["Mistake", "write_report"]
