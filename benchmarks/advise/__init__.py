"""Advice on settings: the cheapest configuration that meets a latency target, found by measurement.

`profile` is the load, `candidates` what may be configured, `measure` one run of it, `search` the race between
candidates, `verify` the proof of its winner. The command is `distillery-bench advise`.
"""
