"""Pictures of digits: from a file to pixels, the ink in them, and images as in MNIST."""
