"""Models: weights, partial loading, sites, encoders and text generation."""
