"""Pruning to minimality, and the certificate."""
