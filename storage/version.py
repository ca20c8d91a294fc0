"""The version of neuralign."""

__version__ = "0.1.0"
