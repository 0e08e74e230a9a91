"""One file per method; see docs/add-a-method.md."""
