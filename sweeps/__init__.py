"""One TOML file per question; see docs/add-a-sweep.md."""
