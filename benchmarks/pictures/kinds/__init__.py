"""Kinds of pictures by what they vary: file, pen, paper, light, camera."""
