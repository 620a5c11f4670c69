"""Offline training of a teacher and its students on MNIST. Knows torch, knows nothing of serving."""
