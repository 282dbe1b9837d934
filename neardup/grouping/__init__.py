"""What pairs mean: groups, what to keep of each, and how that is written and shown."""
