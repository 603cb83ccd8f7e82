"""Measurements that anyone can repeat; README.md beside this file holds their tables."""
