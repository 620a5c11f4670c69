"""Decisions on releases: simulations of the sequential test."""
