"""Find the fastest engine on this machine by measuring: `edgevit tune`."""
