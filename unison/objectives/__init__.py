"""Objectives: pure functions from a batch of turns to a loss and metrics."""
