"""Training: the recipe holds every number, the loop does the work."""

from thingstuff.training.loop import train
from thingstuff.training.recipe import Recipe

__all__ = ["Recipe", "train"]
