"""Activations: shards that pool them, their actors and pipelines, batching and pooling."""
