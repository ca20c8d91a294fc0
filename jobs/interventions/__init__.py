"""What steering does to a model's neurons, and the texts on which it measures the effect."""
