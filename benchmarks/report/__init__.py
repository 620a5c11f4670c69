"""Results as tables and figures of README and docs, one module per section; `render` is the command."""
