"""Training: the recipe holds every number, the loop does the work."""

from thingstuff.training.loop import is_main_process, processes, train
from thingstuff.training.recipe import Recipe
from thingstuff.training.validation import table

__all__ = ["Recipe", "is_main_process", "processes", "table", "train"]
