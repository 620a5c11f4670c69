"""Release control: which version serves, and the statistics of the decision."""
