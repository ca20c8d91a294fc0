"""Steering: interventions, and the shards, actors and pipelines that apply them."""
