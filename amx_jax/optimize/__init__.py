"""The step of one image, and the loop over a batch of them."""
