"""The inputs of bulk scoring: what they contain, in parts that can be read independently of each other."""
