"""Run a command on this processor as on one with fewer vector instructions."""
