"""The report page: queries, wording, figures, rendering and serving."""
