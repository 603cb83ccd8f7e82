"""Metrics of explanations, peer methods, and tables of both."""
