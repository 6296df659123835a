"""The commands of `mnv3`, a module each: `add` declares it with its options, `run` does it.

What `run` needs it imports itself, so that help and a wrong option wait for no torch.
"""
