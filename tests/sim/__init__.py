"""The simulator: real cores against a simulated world, under seeds, in virtual time."""
