"""The page of a report: what is read from the store, what is said of it, how it is drawn and served."""
