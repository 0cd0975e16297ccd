"""Look at the device while it works: clocks, temperatures, power, energy, limits and load during a measurement."""
