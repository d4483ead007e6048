"""Pictures of segments: translucent fill, thin outlines, labels that stay legible.

image, Segments -> scale -> colours -> fills -> outlines -> labels -> picture

Size: an image smaller than MIN_SIDE is enlarged by a whole factor, so that outlines are thin beside what they surround and labels
legible; one longer than MAX_SIDE is reduced by a whole factor, since few viewers open more. `scale=1` keeps the image's own size.

Colour: each thing gets the palette's colour least like its neighbours' colours and the image below it, so that touching objects
differ and purple tissue gets no purple outline; each class of stuff keeps one calm tone. The same input gives the same picture.
"""

from thingstuff.visuals.files import SUFFIXES, save
from thingstuff.visuals.overlay import overlay
from thingstuff.visuals.panels import describe, side_by_side

__all__ = ["SUFFIXES", "describe", "overlay", "save", "side_by_side"]
