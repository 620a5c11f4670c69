"""Changes of what is served, decided by the parent process: versions, aliases, and the trial of a candidate."""
