"""Concepts as vectors: embeddings, sentence encoders and scores of neurons."""
