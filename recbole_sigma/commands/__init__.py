"""The commands of `recbole-sigma`, one file each."""
