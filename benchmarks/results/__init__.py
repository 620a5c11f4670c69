"""Result files: every figure of README and docs comes from one of them."""
