"""Pictures of digits as users send them: drawn by a seeded generator, and their conversion measured."""
