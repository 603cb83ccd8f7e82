"""Which few pixels made the classifier decide: minimal, verified masks by activation matching."""
