"""Everything that decides something: values in, values out. No I/O, clock, randomness or framework."""
