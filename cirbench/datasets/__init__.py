"""One file per dataset: its facts (`SPEC`), its knobs (`Knobs`) and `load(knobs, root)`."""
