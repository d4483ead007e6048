"""Instance, panoptic and semantic segmentation in one pip install."""

__version__ = "0.1.0"
