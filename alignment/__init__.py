"""The science: pure functions on arrays and tables. Imports no Ray and reads no disk."""
