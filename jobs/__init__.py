"""What is run: one module per stage, the sweep that joins them, and the command line."""
