"""Frozen values that every room passes on: images and batches, categories, masks, segments.

Import them from their files; this package loads none of them by itself, because images.py and preprocessing.py need torch and the
others do not.
"""
