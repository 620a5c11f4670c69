"""MNIST: download, verification, split, augmentation and cached views."""
