"""Generated from protos/: never edit, run `make proto`."""
