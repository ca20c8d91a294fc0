"""Models on Ray: weights, shards, replicas, steering and the work queue."""
