"""Results as people read them: the tables and pictures of README and docs. `render` is the command."""
