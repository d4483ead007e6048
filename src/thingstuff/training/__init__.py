"""Training: the recipe holds every number, the loop does the work."""

from thingstuff.training.loop import is_main_process, train
from thingstuff.training.recipe import Recipe

__all__ = ["Recipe", "is_main_process", "train"]
