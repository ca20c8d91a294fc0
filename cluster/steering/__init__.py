"""Steering: interventions, and the shards and pipelines that apply them."""
