"""A corpus counted on many machines, by engines that people have: `on_dask`, `on_torch`. `tasks` is what they run."""
