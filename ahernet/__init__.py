"""Learning to localize actions from moments: the model, its data, training, inference and evaluation."""

__version__ = "0.1.0"
