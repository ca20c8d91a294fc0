"""The sweep file: what a user asks for, read from YAML and checked before anything runs.

Paths in a sweep file are relative to the file.
"""

from jobs.config.analysis import OTHERS, OWN, VECTOR_MEASURES, Experts, Similarity, Steering
from jobs.config.comparison import Human, Latents, SentenceEncoder, WordVectors
from jobs.config.concepts import Brought, Generate, Harvest
from jobs.config.loader import read_sweep
from jobs.config.models import Model, Neurons
from jobs.config.sweep import Sweep

__all__ = [
    "OTHERS",
    "OWN",
    "VECTOR_MEASURES",
    "Brought",
    "Experts",
    "Generate",
    "Harvest",
    "Human",
    "Latents",
    "Model",
    "Neurons",
    "SentenceEncoder",
    "Similarity",
    "Steering",
    "Sweep",
    "WordVectors",
    "read_sweep",
]
