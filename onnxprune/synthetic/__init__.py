"""Inputs made up by kind, for models that come without data. Whatever is found on them is labelled synthetic.

images    dead leaves and 1/f noise, and variations of images
signals   band-limited noise, token ids, masks and positions: everything that is no image
drawing   rows of all inputs of a model
guesses   which range of values the model takes, by the statistics that it holds
features  what its last layers make of rows
breeding  of images, those that they tell apart
making    feeds of a whole model
joining   feeds made from few real images
judging   whether real inputs are what the model was trained on
"""

from onnxprune.synthetic.joining import Joined, is_joined, join
from onnxprune.synthetic.judging import judge
from onnxprune.synthetic.making import Made, make

__all__ = ["Joined", "Made", "is_joined", "join", "judge", "make"]
