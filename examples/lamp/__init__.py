"""A lamp that learns when you want light: from your words and your flips of its switch, from nothing else."""
