"""The sections of the page, one per module."""
