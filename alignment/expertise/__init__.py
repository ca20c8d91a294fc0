"""How well each neuron detects each concept."""
