"""The sweep file: read from YAML and checked before anything runs."""
