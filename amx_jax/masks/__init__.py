"""Mask generators, hardening, and putting image and mask together."""
