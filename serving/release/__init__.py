"""Release control: changes of what is served, decided by the parent process, and the statistics of the decisions."""
