"""Where models live and work is queued: weights, shards, replicas and the work queue."""
