"""What console, page and API share: row selection and differences."""
