"""Bulk scoring: predictions for whole files and folders, into Parquet, by the service's own code.

    distillery-score shards/*.tar --out scores

An input is split into parts of a fixed number of items, and each part becomes one file or none: a run that was killed
continues with the parts that are missing.
"""
