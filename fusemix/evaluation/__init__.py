"""Retrieval metrics, evaluation protocols and the comparison of encoders before training."""
