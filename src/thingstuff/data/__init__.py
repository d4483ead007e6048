"""Annotated images on disk, made ready for training and evaluation: readers, augmentation, loaders."""
