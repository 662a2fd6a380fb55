"""Inputs made up by kind, for models that come without data. Whatever is found on them is labelled synthetic.

images    dead leaves and 1/f noise
signals   band-limited noise, token ids, masks and positions: everything that is no image
guesses   which range of values the model takes, by the statistics that it holds
breeding  of images, those that the model tells apart
making    feeds of a whole model
"""

from onnxprune.synthetic.making import Made, make

__all__ = ["Made", "make"]
