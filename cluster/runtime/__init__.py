"""Ray: session, placement, work queue, metrics and the job server."""
