"""Where sentences and human judgments come from."""
