"""Reports that people read: `report.json`'s values and pictures of the worst images -> one self-contained `report.html`."""

from thingstuff.evaluation.report.differences import render_comparison
from thingstuff.evaluation.report.page import render
from thingstuff.evaluation.report.pictures import Picture

__all__ = ["Picture", "render", "render_comparison"]
