"""The terms of the objective and their weighted sum."""
