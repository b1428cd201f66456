"""The rules of the dialect, one file for each subject; `validate` runs them all."""
