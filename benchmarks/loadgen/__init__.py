"""MLPerf LoadGen's scenarios: `run` starts LoadGen, `session` and `served` are the systems under test.

`scenarios` runs the four of them and makes the rows of a result; the command is `distillery-bench scenarios`.
"""
