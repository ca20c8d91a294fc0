"""The store: paths, layout, commits, manifests, leases, verification."""
