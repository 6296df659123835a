"""The commands of `mnv3`, a module each: `add` declares it with its options, `run` does it."""
