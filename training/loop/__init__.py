"""The training loop: losses, schedules, soft targets, devices."""
