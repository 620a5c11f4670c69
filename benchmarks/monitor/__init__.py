"""A running service by its own metrics: two scrapes, what happened between them, and how a terminal shows it."""
