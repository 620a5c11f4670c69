"""Several hosts on one machine: faults under load, and throughput by the number of hosts."""
