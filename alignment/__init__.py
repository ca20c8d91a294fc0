"""The science: pure functions of arrays and strings. Imports neither Ray nor the store."""
