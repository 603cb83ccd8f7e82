"""Photos in and results out."""
