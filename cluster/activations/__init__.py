"""Reading activations: shards, their actors and pipelines, tokens and pooling."""
