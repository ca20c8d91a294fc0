"""What is kept: layout, schemas, atomic commits, readers of outside formats, DuckDB views."""

__version__ = "0.1.0"
