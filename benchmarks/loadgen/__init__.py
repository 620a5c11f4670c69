"""MLPerf LoadGen's scenarios. `scenarios` is the way in, `bench` the command."""
